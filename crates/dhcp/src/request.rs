use std::net::Ipv4Addr;

use dhcproto::v4::{MessageType, OptionCode, borrowed};
use proximity_table::{Label, Mac};

use crate::Drop;

/// What a client asks, read from its message. Every field that is not there is `None` or unspecified; no
/// option's content can make reading fail.
#[derive(Clone, Debug)]
pub struct Request {
    /// Message type.
    pub kind: MessageType,
    /// Transaction, echoed in the reply.
    pub xid: u32,
    /// Seconds since the client began, echoed.
    pub secs: u16,
    /// The client cannot receive unicast yet.
    pub broadcast: bool,
    /// Address the client already uses.
    pub ciaddr: Ipv4Addr,
    /// Relay that forwarded the message.
    pub giaddr: Ipv4Addr,
    /// Hops, echoed.
    pub hops: u8,
    /// The client.
    pub mac: Mac,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 51, seconds.
    pub lease_time: Option<u32>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 55.
    pub wanted: Vec<u8>,
    /// Option 57.
    pub max_size: Option<u16>,
    /// Option 61.
    pub client_id: Option<Vec<u8>>,
    /// Host name of option 81, else of option 12.
    pub hostname: Option<Label>,
    /// Flags of option 81 when it was sent.
    pub fqdn_flags: Option<u8>,
    /// Option 82, echoed (RFC 3046 §2.2).
    pub relay_info: Option<Vec<u8>>,
}

impl Request {
    /// Reads a client's message from a UDP payload.
    pub fn read(payload: &[u8]) -> Result<Request, Drop> {
        let message = borrowed::Message::new(payload).map_err(|_| Drop::Malformed)?;
        if payload[236..240] != [99, 130, 83, 99] {
            return Err(Drop::Malformed);
        }
        // The fixed octets first: the accessors trust the hardware address length.
        if payload[0] != 1 || payload[1] != 1 || payload[2] != 6 {
            return Err(Drop::NotBootRequest);
        }
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&payload[28..34]);
        if bytes == [0; 6] || bytes[0] & 1 == 1 {
            return Err(Drop::HardwareAddress);
        }
        let mut request = Request {
            kind: MessageType::Unknown(0),
            xid: message.xid(),
            secs: message.secs(),
            broadcast: message.flags().broadcast(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            hops: message.hops(),
            mac: Mac(bytes),
            requested: None,
            lease_time: None,
            server: None,
            wanted: Vec::new(),
            max_size: None,
            client_id: None,
            hostname: None,
            fqdn_flags: None,
            relay_info: None,
        };
        let mut fqdn = None;
        for option in message.opts() {
            request.note(option.code(), option.data(), &mut fqdn);
        }
        request.hostname = fqdn.or(request.hostname);
        match request.kind {
            MessageType::Discover
            | MessageType::Request
            | MessageType::Decline
            | MessageType::Release
            | MessageType::Inform => Ok(request),
            _ => Err(Drop::MessageType),
        }
    }

    fn note(&mut self, code: OptionCode, data: &[u8], fqdn: &mut Option<Label>) {
        let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
        match code {
            OptionCode::MessageType => self.kind = data.first().copied().unwrap_or(0).into(),
            OptionCode::RequestedIpAddress => self.requested = address(),
            OptionCode::AddressLeaseTime => {
                self.lease_time = <[u8; 4]>::try_from(data).ok().map(u32::from_be_bytes);
            }
            OptionCode::ServerIdentifier => self.server = address(),
            OptionCode::ParameterRequestList => self.wanted = data.to_vec(),
            OptionCode::MaxMessageSize => {
                self.max_size = <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes);
            }
            OptionCode::ClientIdentifier if (2..=255).contains(&data.len()) => {
                self.client_id = Some(data.to_vec())
            }
            OptionCode::Hostname => self.hostname = Label::from_client(data),
            OptionCode::ClientFQDN if data.len() >= 3 => {
                self.fqdn_flags = Some(data[0]);
                *fqdn = fqdn_label(data[0], &data[3..]);
            }
            OptionCode::RelayAgentInformation if data.len() <= 255 => self.relay_info = Some(data.to_vec()),
            _ => {}
        }
    }
}

/// The host name in option 81 (RFC 4702 §2.3): wire labels when the E bit is set, else plain text.
fn fqdn_label(flags: u8, name: &[u8]) -> Option<Label> {
    if flags & 0b100 == 0 {
        return Label::from_client(name);
    }
    let length = usize::from(*name.first()?);
    Label::from_client(name.get(1..1 + length)?)
}
