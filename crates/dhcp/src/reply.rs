use std::net::Ipv4Addr;

use dhcproto::v4::{
    DhcpOption, DhcpOptions, Encodable, Encoder, Flags, Message, MessageType, Opcode, OptionCode,
    UnknownOption,
};
use proximity_table::{Label, Network};

use crate::{Drop, Request};

/// Least size of a message, which BOOTP relays and old clients expect (RFC 1542 §2.1).
const LEAST_SIZE: usize = 300;
/// Least size that every client must accept (RFC 2131 §2).
const SURE_SIZE: usize = 576;
/// IP and UDP headers, which option 57 counts in.
const HEADERS: usize = 28;

/// What a reply says beside the network's own options.
pub struct Content<'a> {
    pub kind: MessageType,
    pub yiaddr: Ipv4Addr,
    /// Lease time in seconds; `None` for a NAK and for the answer to INFORM.
    pub lease_time: Option<u32>,
    pub hostname: Option<&'a Label>,
    /// Why, in a NAK.
    pub message: Option<&'static str>,
}

/// Encodes the reply to a request.
pub fn encode(request: &Request, network: &Network, content: &Content<'_>) -> Result<Vec<u8>, Drop> {
    let nak = content.kind == MessageType::Nak;
    // RFC 2131 §4.3.1 table 3: ciaddr is echoed in an ACK, and zero otherwise.
    let ciaddr = if content.kind == MessageType::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED };
    let mut reply = Message::new_with_id(
        request.xid,
        ciaddr,
        content.yiaddr,
        Ipv4Addr::UNSPECIFIED,
        request.giaddr,
        &request.mac.0,
    );
    reply.set_opcode(Opcode::BootReply);
    let flags = if request.broadcast { Flags::default().set_broadcast() } else { Flags::default() };
    // RFC 2131 §4.3.2: a NAK through a relay must be broadcast to the client.
    reply.set_flags(if nak && !request.giaddr.is_unspecified() { flags.set_broadcast() } else { flags });
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(content.kind));
    options.insert(DhcpOption::ServerIdentifier(network.address.addr));
    if let Some(text) = content.message {
        options.insert(DhcpOption::Message(text.to_owned()));
    }
    if !nak {
        if let Some(seconds) = content.lease_time {
            options.insert(DhcpOption::AddressLeaseTime(seconds));
            // RFC 2131 §4.4.5: T1 is half, T2 seven eighths of the lease time.
            options.insert(DhcpOption::Renewal(seconds / 2));
            options.insert(DhcpOption::Rebinding((u64::from(seconds) * 7 / 8) as u32));
        }
        describe_network(options, request, network);
        describe_client(options, request, network, content.hostname);
    }
    let limit = usize::from(request.max_size.unwrap_or(0)).max(SURE_SIZE) - HEADERS;
    fit(&mut reply, request.relay_info.as_deref(), limit)
}

fn describe_network(options: &mut DhcpOptions, request: &Request, network: &Network) {
    options.insert(DhcpOption::SubnetMask(network.address.mask()));
    options.insert(DhcpOption::BroadcastAddr(network.address.broadcast()));
    options.insert(DhcpOption::Router(vec![network.router]));
    if !network.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(network.dns.clone()));
    }
    options.insert(DhcpOption::DomainName(network.domain.to_string()));
    // RFC 3397: wire names one after the other. Sent unasked: resolvers need a search domain to send
    // `.local` names to a unicast server at all.
    let search: Vec<u8> = network.domain_search.iter().flat_map(|name| name.as_wire()).copied().collect();
    if (1..=255).contains(&search.len()) {
        options.insert(raw(119, search));
    }
    if !network.ntp.is_empty() {
        options.insert(DhcpOption::NtpServers(network.ntp.clone()));
    }
    if let Some(mtu) = network.mtu {
        options.insert(DhcpOption::InterfaceMtu(mtu));
    }
    for option in network.options.iter().filter(|option| request.wanted.contains(&option.code)) {
        options.insert(raw(option.code, option.value.clone()));
    }
}

fn describe_client(
    options: &mut DhcpOptions,
    request: &Request,
    network: &Network,
    hostname: Option<&Label>,
) {
    let Some(hostname) = hostname else { return };
    if request.wanted.contains(&12) {
        options.insert(DhcpOption::Hostname(hostname.as_str().to_owned()));
    }
    if let Some(flags) = request.fqdn_flags
        && let Ok(fqdn) = network.domain.child(hostname)
    {
        // RFC 4702 §4: the server keeps both records (S), says so when the client asked otherwise (O), and
        // answers in the encoding that the client used (E); both result codes are 255.
        let asked_server = flags & 0b1;
        let encoding = flags & 0b100;
        let answer = 0b1 | ((asked_server ^ 1) << 1) | encoding;
        let mut value = vec![answer, 255, 255];
        if encoding != 0 {
            value.extend(fqdn.as_wire())
        } else {
            value.extend(fqdn.to_string().bytes())
        }
        options.insert(raw(81, value));
    }
}

/// Encodes, leaving out what the client can do without until the message fits `limit`.
fn fit(reply: &mut Message, relay_info: Option<&[u8]>, limit: usize) -> Result<Vec<u8>, Drop> {
    loop {
        let mut bytes = Vec::with_capacity(LEAST_SIZE);
        reply.encode(&mut Encoder::new(&mut bytes)).map_err(|_| Drop::Encoding)?;
        if let Some(info) = relay_info {
            // RFC 3046 §2.2: echoed untouched, as the last option before the end mark.
            bytes.pop();
            bytes.extend([82, info.len() as u8]);
            bytes.extend(info);
            bytes.push(255);
        }
        if bytes.len() <= limit {
            bytes.resize(bytes.len().max(LEAST_SIZE), 0);
            return Ok(bytes);
        }
        let needed = [1, 3, 6, 51, 53, 54, 58, 59].map(OptionCode::from);
        let spare = reply.opts().iter().map(|(code, _)| *code).filter(|code| !needed.contains(code)).last();
        reply.opts_mut().remove(spare.ok_or(Drop::Encoding)?);
    }
}

fn raw(code: u8, value: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(code.into(), value))
}
