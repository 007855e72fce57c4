use crate::encode::weighted;

/// Whether a client wants JSON rather than a page to look at, by the values of its `Accept` fields (RFC 9110 §12.5.1).
/// Whoever wants both alike and names JSON alone gets it; whoever takes anything gets the page.
pub fn prefers_json<'a>(values: impl Iterator<Item = &'a [u8]>) -> bool {
    // What is named precisely counts more than what a range includes.
    let (mut json, mut html) = ((0, 0), (0, 0));
    for element in values.flat_map(|value| value.split(|&octet| octet == b',')) {
        let (range, weight) = weighted(element);
        let range = range.to_ascii_lowercase();
        let is_json =
            range == b"application/json" || (range.starts_with(b"application/") && range.ends_with(b"+json"));
        let is_html = range == b"text/html" || range == b"application/xhtml+xml";
        let all = range == b"*/*";
        let precise = |exact, wide| {
            if exact {
                3
            } else if wide {
                2
            } else {
                u32::from(all)
            }
        };
        for (best, precision) in [
            (&mut json, precise(is_json, range == b"application/*")),
            (&mut html, precise(is_html, range == b"text/*")),
        ] {
            if precision > best.0 || (precision == best.0 && weight > best.1) {
                *best = (precision, weight);
            }
        }
    }
    json.0 > 0 && json.1 > 0 && (json.1 > html.1 || (json.1 == html.1 && json.0 > html.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_more_is_sent() {
        for (accept, json) in [
            (&["application/json"][..], true),
            (&["APPLICATION/JSON"], true),
            (&["application/problem+json"], true),
            (&["application/*"], true),
            (&["application/json, text/html;q=0.1"], true),
            (&["application/json;q=0.1, text/html"], false),
            (&["text/html;q=0", "application/json"], true),
            (&["application/json, text/plain, */*"], true),
            (&["application/json;q=0"], false),
            (&["application/json, text/html"], false),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], false),
            (&["*/*"], false),
            (&["image/png"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(prefers_json(accept.iter().map(|value| value.as_bytes())), json, "{accept:?}");
        }
    }
}
