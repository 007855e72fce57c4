//! Raw frames between two ends of a cable.

use crate::host::{Host, command, runtime};
use proximity_net::PacketSocket;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Two namespaces, `a` (10.9.0.1) and `b` (10.9.0.2), with a cable between their `eth0`s.
fn cable() -> Option<(Host, Host)> {
    let (a, b) = (Host::new()?, Host::new()?);
    a.ip(&format!("link add eth0 type veth peer name eth0 netns {}", b.namespace()));
    for (host, address) in [(&a, "10.9.0.1/24"), (&b, "10.9.0.2/24")] {
        host.ip(&format!("address add {address} dev eth0"));
        host.ip("link set eth0 up");
    }
    [&a, &b].into_iter().for_each(wait_until_running);
    Some((a, b))
}

/// The kernel begins to send some time after it has a carrier, and drops what comes before in silence. The
/// state that `ip` shows changes at that moment; it is polled, for the notification may have come already.
fn wait_until_running(host: &Host) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let shown = || host.command("ip", "-o link show eth0");
    while !shown().contains("state UP") {
        assert!(Instant::now() < deadline, "{}", shown());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ethernet, IPv4 and UDP headers around a payload; checksums left zero.
fn frame(destination: [u8; 6], port: u16, fragment: u16, options: bool, payload: &[u8]) -> Vec<u8> {
    let header_words = if options { 6 } else { 5 };
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let total = (header_words * 4 + 8 + payload.len()) as u16;
    frame.extend([0x40 | header_words as u8, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend(std::iter::repeat_n(1, if options { 4 } else { 0 }));
    frame.extend(68u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

#[test]
fn broadcast_and_unicast_frames_to_the_port_are_heard_and_nothing_else() {
    let Some((a, b)) = cable() else { return };
    let (listening, listens) = std::sync::mpsc::channel();
    let heard = b.start(move || {
        runtime().block_on(async {
            let socket = PacketSocket::bind("eth0", 67).unwrap();
            listening.send(()).unwrap();
            let mut heard = Vec::new();
            let mut buffer = [0; 2048];
            while heard.last().map(Vec::as_slice) != Some(b"last") {
                let frame = socket.recv(&mut buffer).await.unwrap();
                assert!(!frame.truncated);
                heard.push(buffer[..frame.len].rsplit(|byte| *byte == b'|').next().unwrap().to_vec());
            }
            heard
        })
    });
    listens.recv().unwrap();
    a.run(|| {
        runtime().block_on(async {
            let socket = PacketSocket::bind("eth0", 68).unwrap();
            let everyone = [255; 6];
            for bad in [
                frame(everyone, 68, 0, false, b"|other port"),
                frame(everyone, 67, 0x2000, false, b"|first fragment"),
                frame(everyone, 67, 0x0001, false, b"|later fragment"),
                vec![255; 14],
            ] {
                socket.send(&bad).await.unwrap();
            }
            socket.send(&frame(everyone, 67, 0, false, b"|broadcast")).await.unwrap();
            socket.try_send(&frame(everyone, 67, 0x4000, true, b"|with IP options")).unwrap();
            socket.send(&frame(everyone, 67, 0, false, b"|last")).await.unwrap();
        });
    });
    assert_eq!(heard(), [&b"broadcast"[..], b"with IP options", b"last"]);
}

#[test]
fn frames_of_a_local_sender_have_no_checksum_yet_and_say_so() {
    let Some((a, b)) = cable() else { return };
    let (listening, listens) = std::sync::mpsc::channel();
    let frames = b.start(move || {
        runtime().block_on(async {
            let socket = PacketSocket::bind("eth0", 6767).unwrap();
            listening.send(()).unwrap();
            let mut buffer = [0; 48];
            let unicast = socket.recv(&mut buffer).await.unwrap();
            let raw = socket.recv(&mut buffer).await.unwrap();
            (unicast, raw)
        })
    });
    listens.recv().unwrap();
    a.run(|| {
        // An ordinary socket over veth: checksum offload leaves the checksum to a card that never comes.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[7; 100], "10.9.0.2:6767").unwrap();
        runtime().block_on(async {
            let socket = PacketSocket::bind("eth0", 1).unwrap();
            socket.send(&frame([255; 6], 6767, 0, false, b"")).await.unwrap();
        });
    });
    let (unicast, raw) = frames();
    assert!(!unicast.checksum_ready);
    assert_eq!((unicast.len, unicast.truncated), (48, true));
    assert!(raw.checksum_ready);
    assert_eq!((raw.len, raw.truncated), (42, false));
}

#[test]
fn our_own_frames_do_not_come_back_and_a_downed_link_can_be_awaited() {
    let Some((a, b)) = cable() else { return };
    b.ip("neighbour add 10.9.0.1 lladdr ff:ff:ff:ff:ff:ff dev eth0");
    a.run(move || {
        runtime().block_on(async {
            let socket = PacketSocket::bind("eth0", 67).unwrap();
            let sender = PacketSocket::bind("eth0", 68).unwrap();
            sender.send(&frame([255; 6], 67, 0, false, b"own")).await.unwrap();
            let mut buffer = [0; 2048];
            let own = tokio::time::timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await;
            assert!(own.is_err(), "{own:?}");
            command("ip", "link set eth0 down", "");
            let down = socket.recv(&mut buffer).await.unwrap_err();
            assert_eq!(down.raw_os_error(), Some(nix::errno::Errno::ENETDOWN as i32));

            command("ip", "link set eth0 up", "");
            b.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", "10.9.0.1:67").unwrap());
            let again = socket.recv(&mut buffer).await.unwrap();
            assert!(buffer[..again.len].ends_with(b"hello"));

            let missing = PacketSocket::bind("eth9", 67).err().unwrap();
            assert!(missing.to_string().contains("eth9: look up the interface"), "{missing}");
        });
    });
}
