//! What the scripted broker answers: Kafka's responses, bent by the script's [`Reply`].

use super::{Api, Produced, Reply, Request, State};
use crate::harness::{
    lock, millis, pause, records,
    wire::{Out, Reader},
};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
};

/// Writes the answer; returns false if the connection must be closed.
pub fn answer(
    stream: &mut TcpStream,
    request: &Request,
    reply: &Reply,
    state: &Mutex<State>,
) -> io::Result<bool> {
    match reply {
        Reply::Close => return Ok(false),
        Reply::Mute => return Ok(true),
        Reply::Raw(bytes) => return stream.write_all(bytes).map(|()| true),
        Reply::Body(bytes) => return stream.write_all(&frame(request.correlation, bytes)).map(|()| true),
        _ => {}
    }
    let Some(body) = lock(state).respond(request, reply) else { return Ok(false) };
    let correlation = if let Reply::Correlation(off) = reply {
        request.correlation.wrapping_add(*off)
    } else {
        request.correlation
    };
    let frame = frame(correlation, &body);
    match reply {
        Reply::Lost => Ok(false),
        Reply::Swallow => Ok(true),
        Reply::Drip => {
            for byte in frame {
                stream.write_all(&[byte])?;
                pause(millis(1000));
            }
            Ok(true)
        }
        Reply::Half => stream.write_all(&frame[..frame.len() / 2]).map(|()| false),
        // acks=0: a broker answers nothing
        _ if request.api == Api::Produce && body.is_empty() => Ok(true),
        _ => stream.write_all(&frame).map(|()| true),
    }
}

fn frame(correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = ((body.len() + 4) as u32).to_be_bytes().to_vec();
    frame.extend(correlation.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

impl State {
    /// The body of the answer, with the header's tags; `None` closes the connection, as Kafka does on a malformed
    /// request.
    fn respond(&mut self, request: &Request, reply: &Reply) -> Option<Vec<u8>> {
        let version = request.version;
        let allowed = self.versions.iter().find(|v| v.0 == request.api.key());
        let fits = allowed.is_some_and(|(_, low, high)| (*low..=*high).contains(&version));
        if request.api != Api::ApiVersions && !fits {
            return None;
        }
        let mut out = Out { flexible: request.api.flexible(version), ..Out::default() };
        if request.api != Api::ApiVersions {
            out.tags();
        }
        let done = match request.api {
            Api::ApiVersions => self.api_versions(version, reply, &mut out),
            Api::Metadata => self.metadata(request, reply, &mut out),
            Api::Produce => self.produce(request, reply, &mut out),
            Api::InitProducerId => self.init_producer_id(reply, &mut out),
            Api::DescribeProducers => self.describe_producers(request, reply, &mut out),
            Api::SaslHandshake => {
                out.i16(whole_code(reply));
                out.list(vec!["PLAIN"], |out, name| out.string(Some(name)));
                Some(())
            }
            Api::SaslAuthenticate => {
                out.i16(whole_code(reply));
                out.string(None);
                out.list(Vec::new(), Out::i8); // bytes
                if version >= 1 {
                    out.i64(0);
                }
                out.tags();
                Some(())
            }
            Api::Other(_) => None,
        };
        if done.is_none() {
            self.malformed.push(format!("{:?} v{version} of {} bytes", request.api, request.body.len()));
        }
        done.map(|()| out.bytes)
    }

    fn api_versions(&self, version: i16, reply: &Reply, out: &mut Out) -> Option<()> {
        let known = (0..=4).contains(&version);
        out.flexible = known && out.flexible;
        let code = if known { whole_code(reply) } else { 35 };
        out.i16(code);
        let all = self.versions.clone();
        let announced = if known { all } else { vec![(18, 0, 4)] };
        out.list(announced, |out, (key, low, high)| {
            out.i16(key);
            out.i16(low);
            out.i16(high);
            out.tags();
        });
        if known && version >= 1 {
            out.i32(throttle(reply));
        }
        out.tags();
        Some(())
    }

    fn metadata(&mut self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let v = request.version;
        let mut r = Reader { rest: &request.body, flexible: out.flexible };
        let asked = r.list(|r| {
            if v >= 10 {
                r.take(16)?;
            }
            let name = r.nullable_string()?;
            r.tags()?;
            Some(name.unwrap_or_default())
        })?;
        let may_create = v < 4 || r.i8()? != 0;
        let names = match asked {
            None => self.topics.keys().cloned().collect(),
            Some(names) if names.is_empty() && v == 0 => self.topics.keys().cloned().collect(),
            Some(names) => names,
        };
        if let (true, Some(partitions)) = (may_create, self.auto_create) {
            for name in &names {
                let nodes = self.nodes.len() as i32;
                self.topics
                    .entry(name.clone())
                    .or_insert_with(|| (0..partitions).map(|p| (p, p % nodes + 1)).collect());
            }
        }
        if v >= 3 {
            out.i32(throttle(reply));
        }
        let nodes: Vec<(i32, SocketAddr)> =
            self.nodes.iter().enumerate().map(|(at, a)| (at as i32 + 1, *a)).collect();
        out.list(nodes, |out, (id, address)| {
            out.i32(id);
            out.string(Some(&address.ip().to_string()));
            out.i32(i32::from(address.port()));
            if v >= 1 {
                out.string(None);
            }
            out.tags();
        });
        if v >= 2 {
            out.string(Some(&self.cluster));
        }
        if v >= 1 {
            out.i32(1);
        }
        out.list(names, |out, name| self.topic_metadata(v, &name, reply, out));
        if (8..=10).contains(&v) {
            out.i32(i32::MIN);
        }
        out.tags();
        Some(())
    }

    fn topic_metadata(&self, v: i16, name: &str, reply: &Reply, out: &mut Out) {
        let known = self.topics.get(name);
        let code = match whole_code(reply) {
            0 if known.is_none() => 3,
            code => code,
        };
        out.i16(code);
        out.string(Some(name));
        if v >= 10 {
            let mut id = [0; 16];
            for (at, byte) in name.bytes().enumerate() {
                id[at % 16] ^= byte.rotate_left(at as u32 / 16);
            }
            out.bytes.extend(id);
        }
        if v >= 1 {
            out.i8(0);
        }
        let partitions: Vec<(i32, i32)> =
            if code == 0 { known.into_iter().flatten().map(|(p, l)| (*p, *l)).collect() } else { Vec::new() };
        out.list(partitions, |out, (partition, leader)| {
            let code = match reply {
                Reply::Codes(codes) => codes.iter().find(|c| c.0 == partition).map_or(0, |c| c.1),
                _ => 0,
            };
            out.i16(if code == 0 && leader < 0 { 5 } else { code });
            out.i32(partition);
            out.i32(leader);
            if v >= 7 {
                out.i32(self.epoch);
            }
            let copies = if leader < 0 { vec![] } else { vec![leader] };
            out.list(copies.clone(), Out::i32);
            out.list(copies, Out::i32);
            if v >= 5 {
                out.list(Vec::new(), Out::i32);
            }
            out.tags();
        });
        if v >= 8 {
            out.i32(i32::MIN);
        }
        out.tags();
    }

    fn produce(&mut self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let v = request.version;
        if v < 3 && self.versions.iter().any(|(key, low, _)| *key == 1 && *low >= 4) {
            return None; // Kafka 4
        }
        let mut r = Reader { rest: &request.body, flexible: out.flexible };
        if v >= 3 {
            r.nullable_string()?;
        }
        let (acks, _timeout) = (r.i16()?, r.i32()?);
        let topics = r
            .list(|r| {
                let name = r.string()?;
                let partitions = r.list(|r| {
                    let partition = r.i32()?;
                    let bytes = r.bytes()??.to_vec();
                    r.tags()?;
                    Some((partition, bytes))
                })??;
                r.tags()?;
                Some((name, partitions))
            })?
            .unwrap_or_default();
        out.list(topics, |out, (topic, partitions)| {
            out.string(Some(&topic));
            out.list(partitions, |out, (partition, bytes)| {
                let (code, offset) = self.append(request, reply, acks, &topic, partition, &bytes);
                write_produced(v, partition, code, offset, reply, out);
            });
            out.tags();
        });
        if v >= 1 {
            out.i32(throttle(reply));
        }
        out.tags();
        if acks == 0 {
            out.bytes.clear();
        }
        Some(())
    }

    fn append(
        &mut self,
        request: &Request,
        reply: &Reply,
        acks: i16,
        topic: &str,
        partition: i32,
        bytes: &[u8],
    ) -> (i16, i64) {
        let batch = match records::decode(bytes) {
            Ok(batch) => batch,
            Err(why) => {
                self.malformed.push(format!("records for {topic}/{partition}: {why}"));
                return (2, -1);
            }
        };
        let mut code = match reply {
            Reply::Code(code) => *code,
            Reply::Codes(codes) => codes.iter().find(|c| c.0 == partition).map_or(0, |c| c.1),
            Reply::Refused { partition: refused, code, .. } if *refused == partition => *code,
            _ => 0,
        };
        if code == 0 {
            code = match self.topics.get(topic).and_then(|t| t.get(&partition)) {
                None => 3,
                Some(leader) if *leader != request.node => 6,
                Some(_) => 0,
            };
        }
        let known = self.produced.iter().find(|p| {
            let (a, b) = (&p.batch, &batch);
            p.code == 0
                && p.topic == topic
                && p.partition == partition
                && b.producer_id >= 0
                && (a.producer_id, a.epoch, a.base_sequence, a.records.len())
                    == (b.producer_id, b.epoch, b.base_sequence, b.records.len())
        });
        let (repeated, known_offset) = (known.is_some(), known.map(|p| p.base_offset));
        let mut base_offset = -1;
        if code == 0 {
            let end = self.ends.entry((topic.to_owned(), partition)).or_default();
            base_offset = known_offset.unwrap_or(*end);
            if !repeated {
                *end += batch.records.len() as i64;
            }
        }
        let Request { version, node, connection, nth, .. } = *request;
        let topic = topic.to_owned();
        self.produced.push(Produced {
            topic,
            partition,
            acks,
            version,
            node,
            connection,
            nth,
            batch,
            code,
            repeated,
            base_offset,
        });
        (code, base_offset)
    }

    fn init_producer_id(&mut self, reply: &Reply, out: &mut Out) -> Option<()> {
        let code = whole_code(reply);
        self.next_pid += 1;
        out.i32(throttle(reply));
        out.i16(code);
        out.i64(if code == 0 { self.next_pid } else { -1 });
        out.i16(if code == 0 { 0 } else { -1 });
        out.tags();
        Some(())
    }

    fn describe_producers(&self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let mut r = Reader { rest: &request.body, flexible: true };
        let asked = r
            .list(|r| {
                let topic = r.string()?;
                let partitions = r.list(Reader::i32)??;
                r.tags()?;
                Some((topic, partitions))
            })?
            .unwrap_or_default();
        out.i32(throttle(reply));
        out.list(asked, |out, (topic, partitions)| {
            out.string(Some(&topic));
            out.list(partitions, |out, partition| {
                out.i32(partition);
                out.i16(whole_code(reply));
                out.string(None);
                let mut last: BTreeMap<i64, &Produced> = BTreeMap::new();
                for p in self
                    .produced
                    .iter()
                    .filter(|p| p.topic == topic && p.partition == partition && p.code == 0)
                {
                    if p.batch.producer_id >= 0 && !p.repeated {
                        last.insert(p.batch.producer_id, p);
                    }
                }
                out.list(last, |out, (pid, p)| {
                    out.i64(pid);
                    out.i32(i32::from(p.batch.epoch));
                    out.i32(p.batch.base_sequence.wrapping_add(p.batch.records.len() as i32 - 1) & i32::MAX);
                    out.i64(p.batch.records.last().map_or(-1, |r| r.timestamp));
                    out.i32(-1);
                    out.i64(-1);
                    out.tags();
                });
                out.tags();
            });
            out.tags();
        });
        out.tags();
        Some(())
    }
}

fn write_produced(v: i16, partition: i32, code: i16, offset: i64, reply: &Reply, out: &mut Out) {
    out.i32(partition);
    out.i16(code);
    out.i64(offset);
    if v >= 2 {
        out.i64(-1);
    }
    if v >= 5 {
        out.i64(if code == 0 { 0 } else { -1 });
    }
    if v >= 8 {
        let blamed = match reply {
            Reply::Refused { partition: refused, records, .. } if *refused == partition => records.clone(),
            _ => Vec::new(),
        };
        out.list(blamed, |out, index| {
            out.i32(index);
            out.string(Some("refused by the script"));
            out.tags();
        });
        out.string(None);
    }
    out.tags();
}

fn whole_code(reply: &Reply) -> i16 {
    if let Reply::Code(code) = reply { *code } else { 0 }
}

fn throttle(reply: &Reply) -> i32 {
    if let Reply::Throttle(time) = reply { *time } else { 0 }
}
