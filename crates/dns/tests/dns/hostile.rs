//! Whatever comes in: no panic, no answer that cannot be read, and everything is counted.

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use proximity_dns::{Asker, Outcome, Query, Rcode, Transport, answer};

use crate::fixture::*;

/// xorshift64*: the same messages in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let names = [
        "NgInX.prox.local.",
        "hop.prox.local.",
        "x.dev.prox.local.",
        "blog.prox.local.",
        "1.2.3.10.in-addr.arpa.",
        "example.com.",
        ".",
        "loop1.prox.local.",
        "prox.local.",
    ];
    let types = [RecordType::A, RecordType::ANY, RecordType::SOA, RecordType::MX, RecordType::SRV];
    let mut seeds = Vec::new();
    for name in names {
        for rtype in types {
            seeds.push(query(name, rtype).to_vec().unwrap());
            seeds.push(with_edns(query(name, rtype), 1232).to_vec().unwrap());
        }
    }
    seeds
}

/// Changes, cuts, repeats and inserts octets.
fn mutate(noise: &mut Noise, message: &mut Vec<u8>) {
    for _ in 0..=noise.below(4) {
        let at = noise.below(message.len().max(1));
        match noise.below(6) {
            0 | 1 if at < message.len() => message[at] = noise.next() as u8,
            2 if at < message.len() => message[at] ^= 1 << noise.below(8),
            3 => message.truncate(at),
            4 if at < message.len() => message.insert(at, [0x00, 0x3f, 0x40, 0xc0, 0xff][noise.below(5)]),
            _ => {
                let tail = message[at.min(message.len())..].to_vec();
                message.extend(tail);
                message.truncate(2000);
            }
        }
    }
}

#[test]
fn no_message_brings_the_core_down() {
    // With a delegation and a name of others, so that those ways are met too.
    let world = world_with(&[("x.dev", "NS", "printer"), ("nas.example.org.", "A", "10.20.0.9")]);
    let seeds = seeds();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut out = Vec::new();
    let mut seen = [0usize; 5];
    for round in 0..120_000 {
        let message = if round % 3 == 0 {
            (0..noise.below(80)).map(|_| noise.next() as u8).collect()
        } else {
            let mut message = seeds[noise.below(seeds.len())].clone();
            mutate(&mut noise, &mut message);
            message
        };
        let transport = if round % 2 == 0 { Transport::Udp } else { Transport::Tcp };
        let outcome = answer(&world, NOW, Asker { client: APP, transport }, &message, &mut out);
        seen[match outcome {
            Outcome::Answered(_) => 0,
            Outcome::Malformed(_) => 1,
            Outcome::Forward(_) => 2,
            Outcome::Drop(_) => 3,
            Outcome::Delegated(_) => 4,
        }] += 1;
        if let Outcome::Drop(_) = outcome {
            assert!(out.is_empty());
            continue;
        }
        assert_eq!(out[..2], message[..2]);
        assert!(out[2] & 0x80 != 0 && (transport == Transport::Tcp || out.len() <= 1232));
        let reply =
            Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {message:02x?} {out:02x?}"));
        // Whatever is answered as a query is one that can be read as one.
        if Query::parse(&message).is_ok() {
            assert_eq!(reply.queries.len(), 1);
        }
    }
    assert!(seen[..4].iter().all(|&count| count > 1000) && seen[4] > 100, "{seen:?}");
}

#[tokio::test]
async fn every_message_is_counted_once() {
    let (server, stats) = server(&[]);
    let seeds = seeds();
    let mut noise = Noise(7);
    let rounds = 20_000u64;
    let mut silent = 0;
    for _ in 0..rounds {
        let mut message = seeds[noise.below(seeds.len())].clone();
        mutate(&mut noise, &mut message);
        silent += u64::from(server.resolve_wire(&message, APP).await.is_none());
    }
    let counted = stats.snapshot();
    let sum = |counts: &[(&str, u64)]| counts.iter().map(|(_, count)| count).sum::<u64>();
    assert_eq!(counted.process_queries, rounds);
    assert_eq!(sum(&counted.drops), silent);
    assert_eq!(sum(&counted.answers) + silent, rounds);
    assert_eq!(sum(&counted.malformed), counted.answered(Rcode::FormErr));
    let named = |name| counted.malformed.iter().find(|(known, _)| *known == name).unwrap().1;
    for name in
        ["question_count", "truncated_question", "compressed_question", "trailing_bytes", "label_kind"]
    {
        assert!(named(name) > 0, "{name} in {counted:?}");
    }
}
