//! The way to each broker as far as it is the same for every driver: its name and its port. Speaks no Kafka; what
//! follows (TLS, SASL, versions, metadata, rights) is the drivers'.

use super::Step;
use crate::config::{Broker, Config, Output};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Longest wait for one address.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn steps(config: &Config, tell: &mut dyn FnMut(Step)) {
    let Output::Kafka(kafka) = &config.output else { return };
    for broker in &kafka.brokers {
        let (step, addresses) = resolve(broker);
        tell(step);
        for address in addresses {
            tell(reach(address));
        }
    }
}

fn resolve(broker: &Broker) -> (Step, Vec<SocketAddr>) {
    let began = Instant::now();
    let found = (broker.host.as_str(), broker.port).to_socket_addrs().map(Vec::from_iter);
    let fix = "correct the name in `brokers`, or this machine's DNS and /etc/hosts";
    let outcome = match &found {
        Ok(all) if !all.is_empty() => Ok(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        Ok(_) => Err(("it has no address".to_owned(), fix.to_owned())),
        Err(e) => Err((e.to_string(), fix.to_owned())),
    };
    let step = Step { what: format!("name {}", broker.host), took: began.elapsed(), outcome };
    (step, found.unwrap_or_default())
}

fn reach(address: SocketAddr) -> Step {
    let began = Instant::now();
    let outcome = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => Ok("something listens".into()),
        Err(e) => Err((
            e.to_string(),
            "start the broker there, or open the way to it (port, firewall, route)".into(),
        )),
    };
    Step { what: format!("TCP {address}"), took: began.elapsed(), outcome }
}
