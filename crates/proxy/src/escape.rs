/// Appends `text` as a JSON string with its quotes. Octets that are not UTF-8 become U+FFFD.
pub fn push_json(to: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    to.push(b'"');
    // Every octet is looked at, whatever the ones before it: the compiler takes sixteen at once.
    let is_odd = |b: u8| !(0x20..0x7f).contains(&b) | (b == b'"') | (b == b'\\');
    if !text.iter().fold(false, |found, &b| found | is_odd(b)) {
        to.extend_from_slice(text);
    } else {
        for c in String::from_utf8_lossy(text).chars() {
            match c {
                '"' => to.extend_from_slice(b"\\\""),
                '\\' => to.extend_from_slice(b"\\\\"),
                '\u{0}'..='\u{1f}' | '\u{7f}' => {
                    let code = c as usize;
                    to.extend_from_slice(b"\\u00");
                    to.push(HEX[code >> 4]);
                    to.push(HEX[code & 15]);
                }
                _ => to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
    to.push(b'"');
}

/// Appends a number in decimal.
pub fn push_number(to: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[at..]);
}

/// Appends a number of millionths as a decimal fraction with six places.
pub fn push_millionths(to: &mut Vec<u8>, micros: u64) {
    push_number(to, micros / 1_000_000);
    to.push(b'.');
    let mut rest = micros % 1_000_000;
    let mut places = [b'0'; 6];
    for place in places.iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    to.extend_from_slice(&places);
}

/// `text` made harmless in HTML text and in quoted attributes.
pub fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_read_back() {
        for text in
            [&b"plain"[..], b"quo\"te\\", b"\x00\x1f\x7f\n", "caf\u{e9} \u{1f600}".as_bytes(), b"\xff\xfe"]
        {
            let mut out = Vec::new();
            push_json(&mut out, text);
            let back: String = serde_json::from_slice(&out).unwrap();
            assert_eq!(back, String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn numbers_are_decimal() {
        let number = |f: fn(&mut Vec<u8>, u64), n| {
            let mut out = Vec::new();
            f(&mut out, n);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(number(push_number, 0), "0");
        assert_eq!(number(push_number, u64::MAX), u64::MAX.to_string());
        assert_eq!(number(push_millionths, 42), "0.000042");
        assert_eq!(number(push_millionths, 1_700_000_000_000_001), "1700000000.000001");
    }

    #[test]
    fn html_cannot_be_left() {
        assert_eq!(html("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }
}
