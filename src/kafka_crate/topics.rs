//! The topics of a session: existence, partitions and leaders, and reporting them to the core.

use super::client::CallError;
use super::session::RetryWait;
use super::{CrateWorker, Fault, OnIncompatible, TopicState, verdict};
use crate::kafka::net::probe;
use crate::kafka::net::trouble::Trouble;
use crate::producer::driver::{Event, Leave, Pace, TopicView};
use crate::producer::outage::Who;
use crate::record::Topic;
use std::time::Instant;

impl CrateWorker<'_> {
    /// Fetches a topic's partitions and leaders, and reports changes to the core.
    pub fn learn(&mut self, topic: &Topic) -> Result<(), Fault> {
        self.topics.entry(topic.clone()).or_default();
        if let Err(fault) = self.connect() {
            if let (Some(topic_state), Fault::Retry(_, why)) = (self.topics.get_mut(topic), &fault) {
                topic_state.wait.failed(why.clone(), self.options.limits.pause);
            }
            return Err(fault);
        }
        let held = self.topics.get(topic).and_then(|l| l.pace.filter(|_| !l.wait.is_over()).map(|p| (p, l)));
        if let Some((pace, topic_state)) = held {
            return Err(Fault::Retry(pace, topic_state.wait.why.clone()));
        }
        self.ask_for(topic)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let led = match session.client.load(topic, &self.watch) {
            Ok(led) => led,
            Err(trouble) => return Err(self.load_failed(topic, &trouble)),
        };
        if led.is_empty() {
            // D9: the first answer about a topic being created is "ok, no partitions".
            return Err(self.topic_failed(
                topic,
                Pace::Backoff,
                "it has no partitions (yet), or does not exist",
            ));
        }
        self.wait = RetryWait::default();
        let (host, now) = (session.host.clone(), Instant::now());
        if !self.unproven.contains(&host) {
            self.outages.works(Who::Broker(&host), now);
        }
        self.outages.works(Who::Topic(topic), now);
        let pause = self.options.limits.pause;
        if let Some(topic_state) = self.topics.get_mut(topic) {
            let leaderless = led.iter().any(|l| l.leader.is_none());
            let wait = std::mem::take(&mut topic_state.wait);
            *topic_state = TopicState { led, said: topic_state.said.take(), ..TopicState::default() };
            if leaderless {
                topic_state.wait = wait;
                topic_state.wait.failed("a partition has no leader".to_owned(), pause);
            }
        }
        self.forget_former_leaders();
        Ok(self.say_views()?)
    }

    /// Stops waiting for a broker that leads no partition any more.
    fn forget_former_leaders(&mut self) {
        if self.topics.values().any(|l| l.led.is_empty()) {
            return; // not known for all topics
        }
        let leads =
            |host: &str| self.topics.values().flat_map(|l| &l.led).any(|l| l.leader.as_deref() == Some(host));
        let former: Vec<String> = self.down.keys().filter(|h| !leads(h)).cloned().collect();
        for host in former {
            self.down.remove(&host);
            self.outages.forget(&host);
        }
    }

    /// Uses our own request if the broker supports Metadata v4 (0.11): the crate drops the error codes, creates
    /// topics unasked, and panics if partition ids have gaps (D9).
    fn ask_for(&mut self, topic: &Topic) -> Result<(), Fault> {
        let Some(session) = &self.session else { return Ok(()) };
        if session.versions.metadata.is_none_or(|most| most < 4) {
            return Ok(());
        }
        let (host, modern) = (session.host.clone(), session.versions.suits_modern());
        let o = self.options;
        let bytes = self.outages.board.traffic.broker(&host);
        let answer = match probe::topic(session.via, topic, o.create_topics, self.patience(), &bytes) {
            Ok(answer) => answer,
            Err(found) => {
                let why = match found {
                    Trouble::Ended => "it closed the connection at the first request and may require SASL: set [kafka.sasl], and driver = \"auto\"".to_owned(),
                    other => other.to_string(),
                };
                return Err(self.host_failed(&host, &why));
            }
        };
        let gaps = answer.partitions.iter().zip(0..).any(|(id, i)| *id != i);
        match answer.code {
            0 | 5 | 72 if gaps => {
                let why = "its partition ids have gaps, which the kafka crate cannot handle".to_owned();
                if o.incompatible != OnIncompatible::Wait && modern {
                    return Err(Leave::Incompatible { why: format!("topic {topic}: {why}") }.into());
                }
                let why = format!("{why}; set driver = \"modern\"");
                Err(self.topic_failed(topic, Pace::Blocked, &why))
            }
            0 | 5 | 72 => Ok(()),
            29 => {
                let why = "not authorized (error 29); give the client DESCRIBE and WRITE on it";
                Err(self.topic_failed(topic, Pace::Blocked, why))
            }
            17 => Err(self.topic_failed(topic, Pace::Blocked, "not a valid topic name (error 17)")),
            3 if o.create_topics => {
                Err(self.topic_absent(topic, "it does not exist, and the broker does not create it"))
            }
            3 => Err(self.topic_failed(topic, Pace::Backoff, "it does not exist (error 3); create it")),
            code => Err(self.topic_failed(topic, Pace::Backoff, &format!("Metadata reports error {code}"))),
        }
    }

    fn load_failed(&mut self, topic: &Topic, trouble: &CallError) -> Fault {
        let host = self.session.as_ref().map(|s| s.host.clone()).unwrap_or_default();
        let why = verdict::why(trouble);
        if matches!(trouble, CallError::Panic(_)) {
            // D9, D10: the fault is in this topic's answer only. The client is poisoned nevertheless.
            self.drop_session();
            return self.topic_failed(topic, Pace::Blocked, &why);
        }
        self.host_failed(&host, &why)
    }

    fn host_failed(&mut self, host: &str, why: &str) -> Fault {
        self.outages.failed(Who::Broker(host), why, Instant::now());
        self.drop_session();
        self.turn += 1;
        let why = format!("{host}: {why}");
        self.wait.failed(why.clone(), self.options.limits.pause);
        Fault::Retry(Pace::Backoff, why)
    }

    /// Missing, or without partitions. The first time the topic is usually about to be created, which is not worth
    /// reporting.
    fn topic_absent(&mut self, topic: &Topic, why: &str) -> Fault {
        let topic_state = self.topics.entry(topic.clone()).or_default();
        if topic_state.wait.tries > 0 {
            return self.topic_failed(topic, Pace::Backoff, why);
        }
        topic_state.wait.failed(why.to_owned(), self.options.limits.pause);
        topic_state.pace = Some(Pace::Backoff);
        Fault::Retry(Pace::Backoff, why.to_owned())
    }

    /// Records what is wrong with a topic, and when to check it again.
    pub fn topic_failed(&mut self, topic: &Topic, pace: Pace, why: &str) -> Fault {
        self.outages.failed(Who::Topic(topic), why, Instant::now());
        let topic_state = self.topics.entry(topic.clone()).or_default();
        let limits = &self.options.limits;
        if pace == Pace::Blocked {
            topic_state.wait.until = Some(Instant::now() + limits.held);
            topic_state.wait.why = why.to_owned();
        } else {
            topic_state.wait.failed(why.to_owned(), limits.pause);
        }
        topic_state.pace = Some(pace);
        Fault::Retry(pace, why.to_owned())
    }

    /// Reports to the core every topic whose partitions, or available partitions, have changed.
    pub fn say_views(&mut self) -> Result<(), Leave> {
        let mut news = Vec::new();
        for (topic, topic_state) in self.topics.iter_mut().filter(|(_, l)| !l.led.is_empty()) {
            let lives = |h: &String| !self.down.contains_key(h);
            let available = topic_state.led.iter().filter(|l| l.leader.as_ref().is_some_and(lives));
            let view = TopicView {
                topic: topic.clone(),
                id: [0; 16],
                partitions: topic_state.led.iter().map(|l| l.partition).collect(),
                available: available.map(|l| l.partition).collect(),
            };
            if topic_state.said.as_ref() != Some(&view) {
                topic_state.said = Some(view.clone());
                news.push(view);
            }
        }
        news.into_iter().try_for_each(|view| self.say(Event::Topic(view)))
    }
}
