use super::*;

fn normal(path: &str) -> Result<String, PathError> {
    NormalPath::new(path.as_bytes()).map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap())
}

#[test]
fn ordinary_paths_are_not_touched() {
    for path in
        ["/", "/app.js", "/a/b/", "/~user/x-y_z", "/@scope/a,b;v=1/c=d&e", "/a/.hidden-not", "/a:b!$'()*+"]
    {
        assert_eq!(normal(path).as_deref(), Ok(path));
    }
    assert!(NormalPath::new(b"/index.html").unwrap().is_as_sent());
    assert!(!NormalPath::new(b"/a/../b").unwrap().is_as_sent());
}

// RFC 3986 §5.4.2: "parsers must be careful in handling cases where there are more ".." segments in a
// relative-path reference than there are hierarchical levels"; the results are those of §5.4.
#[test]
fn dot_segments_are_removed() {
    let cases = [
        ("/a/b/c/./../../g", "/a/g"),
        ("/b/c/.", "/b/c/"),
        ("/b/c/..", "/b/"),
        ("/b/c/../", "/b/"),
        ("/b/c/../..", "/"),
        ("/b/c/../../../../g", "/g"),
        ("/b/c/./g", "/b/c/g"),
        ("/b/c/g.", "/b/c/g."),
        ("/b/c/..g", "/b/c/..g"),
        ("/b/c/...", "/b/c/..."),
        ("/.", "/"),
        ("/..", "/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2e", "/a/"),
    ];
    for (path, expected) in cases {
        assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
    }
}

// RFC 3986 §6.2.2.1: "the hexadecimal digits within a percent-encoding triplet […] should be normalized to use
// uppercase letters"; §6.2.2.2: unreserved octets "should be normalized by decoding".
#[test]
fn escapes_have_one_form() {
    assert_eq!(normal("/%61%2D%7e%5f").as_deref(), Ok("/a-~_"));
    assert_eq!(normal("/caf%c3%a9").as_deref(), Ok("/caf%C3%A9"));
    assert_eq!(normal("/café").as_deref(), Ok("/caf%C3%A9"));
    assert_eq!(normal("/a%2fb%5C%20%25%0a").as_deref(), Ok("/a%2Fb%5C%20%25%0A"));
    assert_eq!(normal("/%252e%252e/").as_deref(), Ok("/%252e%252e/"), "unescaped once only");
}

#[test]
fn the_first_slash_is_the_only_one_at_the_beginning() {
    assert_eq!(normal("//evil.example/x").as_deref(), Ok("/evil.example/x"));
    assert_eq!(normal("///").as_deref(), Ok("/"));
    assert_eq!(normal("/a/..//evil").as_deref(), Ok("/evil"));
    assert_eq!(normal("/.//evil").as_deref(), Ok("/evil"));
    // Inside they mean something to those who have addresses in their paths.
    assert_eq!(normal("/fetch/https://example.com//x").as_deref(), Ok("/fetch/https://example.com//x"));
}

#[test]
fn what_backends_read_differently_is_refused() {
    let cases = [
        ("", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("a/b", PathError::NotAbsolute),
        ("/%", PathError::BadEscape),
        ("/%4", PathError::BadEscape),
        ("/%+1", PathError::BadEscape),
        ("/%g1", PathError::BadEscape),
        ("/a%00.php", PathError::Nul),
        ("/a\\..\\b", PathError::Octet(b'\\')),
        ("/a#b", PathError::Octet(b'#')),
        ("/a b", PathError::Octet(b' ')),
        ("/a\r\nX: y", PathError::Octet(b'\r')),
        ("/a\0", PathError::Octet(0)),
        ("/a/..;/b", PathError::HiddenDots),
        ("/a/..;x=1/b", PathError::HiddenDots),
        ("/a/.;/b", PathError::HiddenDots),
        ("/a/%2e%2e;/b", PathError::HiddenDots),
        ("/a/..%2Fb", PathError::HiddenDots),
        ("/a/..%5cb", PathError::HiddenDots),
        ("/x%2f..%2Fadmin", PathError::HiddenDots),
        ("/x%2f%2e%2e/admin", PathError::HiddenDots),
        ("/x%5C..;a%5Cadmin", PathError::HiddenDots),
    ];
    for (path, expected) in cases {
        assert_eq!(normal(path), Err(expected), "{path:?}");
    }
}

fn prefix(path: &str) -> Result<Option<usize>, PathError> {
    NormalPath::new(path.as_bytes()).unwrap().prefix(["/api/v1", "/admin", "/@vite", "/caf%C3%A9"])
}

#[test]
fn prefixes_cover_whole_segments() {
    assert_eq!(prefix("/api/v1"), Ok(Some(0)));
    assert_eq!(prefix("/api/v1/"), Ok(Some(0)));
    assert_eq!(prefix("/api/v1/users"), Ok(Some(0)));
    assert_eq!(prefix("/api/v12"), Ok(None));
    assert_eq!(prefix("/api"), Ok(None));
    assert_eq!(prefix("/Admin"), Ok(None));
    assert_eq!(prefix("/x/../admin/"), Ok(Some(1)));
    assert_eq!(prefix("//admin"), Ok(Some(1)));
    assert_eq!(prefix("/%61dmin"), Ok(Some(1)));
    assert_eq!(prefix("/caf%c3%a9/x"), Ok(Some(3)));
    assert!(has_prefix(b"/x", b"/") && has_prefix(b"/x", b"") && has_prefix(b"/", b"/"));
    assert!(has_prefix(b"/x/y", b"/x/") && has_prefix(b"/x", b"/x/"));
}

#[test]
fn no_spelling_leads_around_a_prefix() {
    let around = [
        "/admin;x",
        "/admin;/users",
        "/;/admin",
        "/admin%2Fusers",
        "/admin%5Cusers",
        "/%2Fadmin",
        "/%5cadmin",
        "/api//v1/users",
        "/api%2Fv1",
        "/api;a/v1",
        "/%40vite/client",
        "/admin%3Bx",
    ];
    for path in around {
        assert_eq!(prefix(path), Err(PathError::Ambiguous), "{path}");
    }
    // Where the reading makes no difference nothing is refused.
    for (path, expected) in [
        ("/projects/group%2Fname/", None),
        ("/x//y", None),
        ("/x;v=1", None),
        ("/admin/group%2Fname//x;y", Some(1)),
        ("/fetch/https://a/admin", None),
    ] {
        assert_eq!(prefix(path), Ok(expected), "{path}");
    }
    let plain: [&str; 0] = [];
    assert_eq!(NormalPath::new(b"/admin%2Fx").unwrap().prefix(plain), Ok(None));
}

#[test]
fn a_stripped_prefix_leaves_a_path() {
    let strip = |path: &str, prefix: &str| {
        String::from_utf8_lossy(strip_prefix(path.as_bytes(), prefix.as_bytes())).into_owned()
    };
    assert_eq!(strip("/api", "/api"), "/");
    assert_eq!(strip("/api/", "/api"), "/");
    assert_eq!(strip("/api/x/", "/api"), "/x/");
    assert_eq!(strip("/api//evil.example", "/api"), "/evil.example");
    assert_eq!(strip("/x", "/"), "/x");
}

fn location(to: &str, path: &str, query: Option<&str>) -> String {
    let path = NormalPath::new(path.as_bytes()).unwrap();
    String::from_utf8(redirect_location(to, &path, query.map(str::as_bytes))).unwrap()
}

#[test]
fn redirects_take_the_path_and_query_along() {
    assert_eq!(location("https://new.example{uri}", "/a/b", Some("c=d")), "https://new.example/a/b?c=d");
    assert_eq!(location("https://new.example/base/{uri}", "/a", None), "https://new.example/base/a");
    assert_eq!(location("https://new.example/fixed", "/a", Some("b")), "https://new.example/fixed");
    assert_eq!(location("/new{uri}", "/", Some("")), "/new/?");
    let login =
        location("https://auth.example/?rd={uri}", "/a b".replace(' ', "%20").as_str(), Some("c=d&e"));
    assert_eq!(login, "https://auth.example/?rd=/a%2520b%3Fc%3Dd%26e");
}

#[test]
fn a_redirect_goes_to_no_other_host_and_stays_one_line() {
    assert_eq!(location("/{uri}", "//evil.example/x", None), "/evil.example/x");
    assert_eq!(location("{uri}", "//evil.example/x", None), "/evil.example/x");
    assert_eq!(location("https://a{uri}", "/@evil.example", None), "https://a/@evil.example");
    let nasty = location("https://a{uri}", "/x", Some("a\r\nSet-Cookie: b=\"<é>#\\"));
    assert_eq!(nasty, "https://a/x?a%0D%0ASet-Cookie:%20b=%22%3C%C3%A9%3E%23%5C");
}

#[test]
fn targets_are_split_at_the_first_question_mark() {
    assert_eq!(split_target(b"/a?b?c"), (&b"/a"[..], Some(&b"b?c"[..])));
    assert_eq!(split_target(b"/a?"), (&b"/a"[..], Some(&b""[..])));
    assert_eq!(split_target(b"/a"), (&b"/a"[..], None));
}

#[test]
fn normalising_twice_changes_nothing() {
    let pieces = ["/", "..", ".", "a", "%2e", "%2F", "%5c", ";", "%41", "é", "%c3", "//", "%25"];
    let mut seed = 7_u64;
    let mut normalised = 0;
    for _ in 0..20_000 {
        let mut path = String::from("/");
        for _ in 0..8 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            path.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
        }
        let Ok(once) = normal(&path) else { continue };
        normalised += 1;
        assert_eq!(normal(&once).as_ref(), Ok(&once), "{path}");
        assert!(once.starts_with('/') && !once.starts_with("//"), "{path}");
        assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")), "{path}");
    }
    assert!(normalised > 5_000);
}
