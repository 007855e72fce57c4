use super::field::Kind;
use super::write::push_field;
use crate::{CompiledEdits, Reason};

/// Fields of one trailer section, at most.
const MOST_FIELDS: usize = 64;

/// A trailer section as it goes on, and how many of its names were ambiguous.
///
/// RFC 9110 §6.5.1: trailers are kept apart from the header. Whoever merges them must not find there what is
/// taken away from the header: `of` tells what a name means, and only what means nothing here passes, without
/// what `withheld` removes.
pub fn pass_on(
    section: &[u8],
    of: fn(&[u8]) -> Kind,
    withheld: Option<&CompiledEdits>,
) -> Result<(Vec<u8>, u32), Reason> {
    let mut passed = Vec::new();
    if section.is_empty() {
        return Ok((passed, 0));
    }
    let whole = [section, b"\r\n"].concat();
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&whole, &mut fields) else {
        return Err(Reason::Malformed);
    };
    let mut ambiguous = 0;
    for field in fields {
        match of(field.name.as_bytes()) {
            _ if withheld.is_some_and(|edits| edits.is_removed(field.name.as_bytes())) => {}
            Kind::Plain | Kind::Date => push_field(&mut passed, field.name.as_bytes(), field.value),
            Kind::Ambiguous => ambiguous += 1,
            _ => {}
        }
    }
    Ok((passed, ambiguous))
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 9110 §6.5.1: "Trailer fields ought to be processed and stored separately from the fields in the header
    // section". Those who merge them must not be fooled.
    #[test]
    fn trailers_carry_no_claims() {
        let section = b"X-Forwarded-For: 1.2.3.4\r\nX_Real_IP: 1.2.3.4\r\nX-Checksum:abc\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(pass_on(section, Kind::of_request, None), Ok((b"X-Checksum: abc\r\n".to_vec(), 1)));
        assert_eq!(pass_on(b"", Kind::of_request, None), Ok((Vec::new(), 0)));
        assert_eq!(pass_on(b"grpc-status: 0\r\n", Kind::of_response, None).unwrap().0, b"grpc-status: 0\r\n");
    }

    #[test]
    fn what_the_header_may_not_have_the_trailers_may_not_have() {
        let edits = CompiledEdits::new([], [], ["remote-user"]).unwrap();
        let section = b"Remote-User: root\r\nX: 1\r\n";
        assert_eq!(pass_on(section, Kind::of_request, Some(&edits)), Ok((b"X: 1\r\n".to_vec(), 0)));
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for section in [&b"no colon\r\n"[..], b"X : 1\r\n", b" folded\r\n", b"X: a\0\r\n", b"X: a\rY: b\r\n"]
        {
            assert_eq!(pass_on(section, Kind::of_request, None), Err(Reason::Malformed));
        }
    }
}
