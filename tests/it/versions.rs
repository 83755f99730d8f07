//! Basic delivery on old and new releases of Kafka, with each driver that supports them: a log is followed through
//! rotations and a broker restart. The long form, with kills and every release, is in `long/versions.rs`.

use crate::harness::*;

/// How lines are sent: `driver` and `delivery` of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Classic,
    Modern,
    ExactlyOnce,
}

impl Way {
    fn config(self) -> (&'static str, &'static str) {
        match self {
            Way::Classic => ("classic", "at-least-once"),
            Way::Modern => ("modern", "at-least-once"),
            Way::ExactlyOnce => ("modern", "exactly-once"),
        }
    }
}

/// An agent that follows `f.log` into a topic of its own, and the writer of the log.
pub struct Pipeline {
    pub way: Way,
    pub folder: Folder,
    pub topic: Topic,
    pub agent: Agent,
    written: u64,
}

impl Pipeline {
    #[track_caller]
    pub fn start(broker: &Broker, way: Way) -> Pipeline {
        let (folder, topic) = (Folder::new(), broker.topic(2));
        let (driver, delivery) = way.config();
        let text = format!(
            "[agent]\nstate_dir = {:?}\ndelivery = {delivery:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n\
             driver = {driver:?}\n[[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
            folder.path("state"),
            topic.address,
            topic.name,
            folder.path("f.log"),
        );
        folder.write("c.toml", text);
        folder.write("f.log", "");
        let agent = folder.agent_line("run -c c.toml").start();
        Pipeline { way, folder, topic, agent, written: 0 }
    }
    /// Appends `count` lines to the log.
    pub fn write(&mut self, count: u64) {
        let lines = Lines::new("f", self.written..self.written + count);
        lines.append_to(&self.folder.path("f.log"));
        self.written += count;
    }
    /// Rotates like logrotate: the log becomes `f.log.1`, that becomes `f.log.2`; the next line starts a new one.
    pub fn rotate(&self) {
        crate::rotation::chain(&self.folder, "f.log");
    }
    /// Waits until there are as many records as lines were written.
    #[track_caller]
    pub fn wait(&self) {
        self.topic.wait_count(self.written);
    }
    pub fn lines(&self) -> Lines {
        Lines::new("f", 0..self.written)
    }
}

/// No broker is stopped while a line is in flight, so no line may be doubled.
#[track_caller]
fn main_job(version: Version, ways: &[Way]) {
    let broker = Broker::own(version);
    let mut pipelines: Vec<Pipeline> = ways.iter().map(|way| Pipeline::start(&broker, *way)).collect();
    for pipeline in &mut pipelines {
        pipeline.write(500);
        pipeline.rotate();
        pipeline.write(500);
        pipeline.wait();
    }
    broker.stop();
    for pipeline in &mut pipelines {
        pipeline.write(500);
        pipeline.rotate();
        pipeline.write(500);
    }
    broker.restart();
    for pipeline in &mut pipelines {
        pipeline.write(500);
        pipeline.wait();
        pipeline.agent.stop().expect_code(0);
        let delivered = Delivered::in_topic(&pipeline.topic);
        let verdict = delivered.against(&[&pipeline.lines()]);
        eprintln!("Kafka {}, {:?}: {verdict}", version.name(), pipeline.way);
        delivered.assert_exactly_once(&[&pipeline.lines()]);
    }
}

// Each fails when a driver sends a request that this release does not support or misreads its answer, or when lines
// are lost in a rotation or a broker restart.
#[test]
fn the_main_job_on_0_11() {
    main_job(Version::V011, &[Way::Classic, Way::Modern]);
}
#[test]
fn the_main_job_on_2_4() {
    main_job(Version::V24, &[Way::Classic, Way::Modern]);
}
#[test]
fn the_main_job_on_2_8() {
    main_job(Version::V28, &[Way::Classic, Way::Modern, Way::ExactlyOnce]);
}
#[test]
fn the_main_job_on_3_9() {
    main_job(Version::V39, &[Way::Classic, Way::Modern, Way::ExactlyOnce]);
}
#[test]
fn the_main_job_on_3_9_with_zookeeper() {
    main_job(Version::V39Zk, &[Way::Classic, Way::Modern, Way::ExactlyOnce]);
}
#[test]
fn the_main_job_on_4_1() {
    main_job(Version::V41, &[Way::Modern, Way::ExactlyOnce]);
}
#[test]
fn the_main_job_on_4_4() {
    main_job(Version::V44, &[Way::Modern, Way::ExactlyOnce]);
}
