//! DNS cookies: who shows one that we gave does not lie about its address (RFC 7873, RFC 9018).

use std::net::IpAddr;

use proximity_table::Timestamp;

/// How long one secret makes cookies, in seconds.
const ROTATION: u64 = 86_400;
/// A cookie is good for an hour, and for clocks that are five minutes ahead (RFC 9018 §4.3).
const OLDEST: u32 = 3600;
const AHEAD: u32 = 300;

/// Makes and checks server cookies. Every day has a secret of its own, which follows from one that only this process
/// knows: nothing is kept and nobody has to rotate anything.
#[derive(Clone, Copy)]
pub struct Cookies {
    seed: [u64; 2],
}

/// A cookie as a client sent it (RFC 7873 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    pub client: [u8; 8],
    /// What we gave it; `None` when it has none, or one that is not of our making.
    pub server: Option<[u8; 16]>,
}

impl Cookies {
    /// Cookies with 16 octets that nobody can foresee.
    pub fn new(entropy: [u8; 16]) -> Cookies {
        let (words, _) = entropy.as_chunks::<8>();
        Cookies { seed: [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])] }
    }

    /// The server cookie for a client (RFC 9018 §4.2): version 1, time, and a hash over both, the client's cookie and
    /// its address.
    pub(crate) fn make(&self, client: [u8; 8], ip: IpAddr, now: Timestamp) -> [u8; 16] {
        let time = now.0 as u32;
        make(self.secret(now.0 / ROTATION), client, ip, time)
    }

    /// Whether a client shows a cookie that was made for it, not long ago.
    pub(crate) fn is_good(&self, offered: &Offered, ip: IpAddr, now: Timestamp) -> bool {
        let Some(server) = offered.server else { return false };
        let time = u32::from_be_bytes([server[4], server[5], server[6], server[7]]);
        // RFC 1982: the time is 32 bits of an endless clock.
        let age = (now.0 as u32).wrapping_sub(time);
        if age > OLDEST && age.wrapping_neg() > AHEAD {
            return false;
        }
        let made = if age <= OLDEST {
            now.0.saturating_sub(u64::from(age))
        } else {
            now.0 + u64::from(age.wrapping_neg())
        };
        let right = make(self.secret(made / ROTATION), offered.client, ip, time);
        // No early end: how much of a guess is right is nobody's to measure.
        right.iter().zip(server).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }

    fn secret(&self, period: u64) -> [u64; 2] {
        let half = |which: u8| {
            let mut message = [which; 9];
            message[..8].copy_from_slice(&period.to_le_bytes());
            siphash(self.seed, &message)
        };
        [half(0), half(1)]
    }
}

fn make(secret: [u64; 2], client: [u8; 8], ip: IpAddr, time: u32) -> [u8; 16] {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&client);
    // Version 1 and three reserved octets.
    input[8] = 1;
    input[12..16].copy_from_slice(&time.to_be_bytes());
    let length = match ip.to_canonical() {
        IpAddr::V4(ip) => {
            input[16..20].copy_from_slice(&ip.octets());
            20
        }
        IpAddr::V6(ip) => {
            input[16..].copy_from_slice(&ip.octets());
            32
        }
    };
    let mut cookie = [0; 16];
    cookie[..8].copy_from_slice(&input[8..16]);
    cookie[8..].copy_from_slice(&siphash(secret, &input[..length]).to_le_bytes());
    cookie
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012).
pub(crate) fn siphash([k0, k1]: [u64; 2], message: &[u8]) -> u64 {
    fn round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    }
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut absorb = |word: u64| {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    };
    let (words, rest) = message.as_chunks::<8>();
    words.iter().for_each(|word| absorb(u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = message.len() as u8;
    absorb(u64::from_le_bytes(last));
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u8; 8] = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 100));

    fn key(octets: [u8; 16]) -> [u64; 2] {
        Cookies::new(octets).seed
    }

    /// The vector of the paper, appendix A.
    #[test]
    fn the_hash_is_siphash_2_4() {
        let octets: [u8; 16] = std::array::from_fn(|at| at as u8);
        let message: [u8; 15] = std::array::from_fn(|at| at as u8);
        assert_eq!(siphash(key(octets), &message), 0xa129_ca61_49be_45e5);
    }

    /// RFC 9018 appendix A.1: any server of an anycast set that has the secret makes this cookie.
    #[test]
    fn the_vector_of_the_rfc_has_its_cookie() {
        let secret = 0xe5e9_73e5_a6b2_a43f_48e7_dc84_9e37_bfcf_u128.to_be_bytes();
        let cookie = make(key(secret), CLIENT, IP, 1_559_731_985);
        assert_eq!(u128::from_be_bytes(cookie), 0x0100_0000_5cf7_9f11_1f81_30c3_eee2_9480);
    }

    /// RFC 9018 §4.3: "The DNS server SHOULD allow cookies within a 1-hour period in the past and a 5-minute period
    /// into the future".
    #[test]
    fn a_cookie_is_good_for_an_hour_for_its_client_alone() {
        let cookies = Cookies::new([7; 16]);
        // Across the change of the secret, and across the wrap of 32 bits.
        for made in [ROTATION * 20_000 - 60, u64::from(u32::MAX) - 60, 1_800_000_000] {
            let server = Some(cookies.make(CLIENT, IP, Timestamp(made)));
            let offered = Offered { client: CLIENT, server };
            let good = |offered: &Offered, ip, now| cookies.is_good(offered, ip, Timestamp(now));
            for (now, expected) in [
                (made, true),
                (made + 3600, true),
                (made + 3601, false),
                (made - 300, true),
                (made - 301, false),
            ] {
                assert_eq!(good(&offered, IP, now), expected, "{}", now as i64 - made as i64);
            }
            assert!(!good(&offered, "198.51.100.101".parse().unwrap(), made));
            assert!(!good(&Offered { client: [1; 8], ..offered }, IP, made));
            assert!(!good(&Offered { server: None, ..offered }, IP, made));
            let mut forged = offered;
            forged.server.as_mut().unwrap()[15] ^= 1;
            assert!(!good(&forged, IP, made));
            assert!(!Cookies::new([8; 16]).is_good(&offered, IP, Timestamp(made)), "another process");
        }
    }
}
