//! Which brokers the metadata fetcher asks, and in which order.

/// The brokers to ask, in the order of a round: first the last one that answered, then learned and configured ones
/// alternately, so that many dead learned ones do not keep a configured one waiting.
#[derive(Debug, Default)]
pub struct Candidates {
    /// From the last answer that named any.
    pub learned: Vec<String>,
    /// How many of each kind have failed so far: the next round starts after them.
    failed: [usize; 2],
    pub last: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Learned,
    Configured,
}

/// A broker's address.
pub type BootstrapBroker = (Kind, String);

impl Candidates {
    pub fn round(&self, configured: &[String]) -> Vec<BootstrapBroker> {
        let learned = self.learned.iter().filter(|l| !configured.contains(l));
        let learned = turned(learned, self.failed[Kind::Learned as usize]);
        let configured = turned(configured.iter(), self.failed[Kind::Configured as usize]);
        let longest = learned.len().max(configured.len());
        let mut all: Vec<BootstrapBroker> = Vec::new();
        for i in 0..longest {
            all.extend(learned.get(i).map(|l| (Kind::Learned, (*l).clone())));
            all.extend(configured.get(i).map(|c| (Kind::Configured, (*c).clone())));
        }
        if let Some(at) = all.iter().position(|(_, a)| self.last.as_ref() == Some(a)) {
            all[..=at].rotate_right(1);
        }
        all
    }

    pub fn failed(&mut self, kind: Kind, address: &str) {
        if self.last.as_deref() == Some(address) {
            self.last = None;
        } else {
            self.failed[kind as usize] = self.failed[kind as usize].wrapping_add(1);
        }
    }
}

/// The list rotated to start at index `first`.
fn turned<'a>(all: impl Iterator<Item = &'a String>, first: usize) -> Vec<&'a String> {
    let mut all: Vec<&String> = all.collect();
    if !all.is_empty() {
        let first = first % all.len();
        all.rotate_left(first);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(candidates: &Candidates, configured: &[String]) -> String {
        candidates.round(configured).iter().map(|(_, a)| a.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Fails when all learned brokers precede a configured one, a round starts where the previous one did, or a broker
    /// of both kinds is asked twice.
    #[test]
    fn learned_and_configured_brokers_take_turns() {
        let configured = ["c1".to_owned(), "c2".to_owned()];
        let learned = ["l1", "l2", "c2", "l3"].map(str::to_owned).to_vec();
        let mut c = Candidates { learned, ..Candidates::default() };
        assert_eq!(names(&c, &configured), "l1 c1 l2 c2 l3");
        c.failed(Kind::Learned, "l1");
        c.failed(Kind::Configured, "c1");
        c.failed(Kind::Learned, "l2");
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        c.last = Some("c1".into());
        assert_eq!(names(&c, &configured), "c1 l3 c2 l1 l2");
        c.failed(Kind::Configured, "c1");
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        c.last = Some("gone".into());
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        assert_eq!(names(&Candidates::default(), &[]), "");
    }
}
