//! The head of a request, parsed where it lies.

use std::mem::MaybeUninit;

use crate::response::Status;

/// Header fields that a request may have.
const FIELDS_MAX: usize = 64;

/// What is asked of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    /// One that HTTP knows and a file does not.
    NotAllowed,
    /// One that HTTP does not know.
    Unknown,
}

/// Fields that choose what is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields<'a> {
    pub range: Option<&'a [u8]>,
    pub if_range: Option<&'a [u8]>,
    pub if_match: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub if_modified_since: Option<&'a [u8]>,
    pub if_unmodified_since: Option<&'a [u8]>,
}

/// A request whose head is whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    /// The target's path: it begins with a slash, and its query is cut off.
    pub path: &'a [u8],
    /// 0 or 1, of HTTP/1.
    pub version: u8,
    /// The connection stays open after the response.
    pub keep_alive: bool,
    /// A body follows.
    pub has_body: bool,
    /// `fields` has something in it.
    pub choosy: bool,
    pub fields: Fields<'a>,
}

/// What the received bytes are.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// The beginning of a request.
    Partial,
    /// A request, and the bytes of its head.
    Request(Request<'a>, usize),
    /// Nothing that can be answered otherwise; where the next request begins is not known.
    Bad(Status),
}

/// Parses the first request in `bytes`.
#[inline]
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let len = match head.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(error) => return Parsed::Bad(blame(error, bytes)),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Parsed::Bad(Status::BAD_REQUEST);
    };
    match read(method, target, version, head.headers) {
        Ok(request) => Parsed::Request(request, len),
        Err(status) => Parsed::Bad(status),
    }
}

#[cold]
fn blame(error: httparse::Error, bytes: &[u8]) -> Status {
    match error {
        httparse::Error::TooManyHeaders => Status::FIELDS_TOO_LARGE,
        httparse::Error::Version if is_http_version(bytes) => Status::VERSION_NOT_SUPPORTED,
        _ => Status::BAD_REQUEST,
    }
}

/// Whether the first line ends with a version of HTTP, if not one that we speak.
fn is_http_version(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|&byte| byte == b'\n').next().unwrap_or_default();
    let version = line.trim_ascii_end().rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    match version.strip_prefix(b"HTTP/") {
        Some([major, rest @ ..]) if major.is_ascii_digit() => {
            matches!(rest, [] | [b'.', b'0'..=b'9'])
        }
        _ => false,
    }
}

fn read<'a>(
    method: &'a str,
    target: &'a str,
    version: u8,
    lines: &[httparse::Header<'a>],
) -> Result<Request<'a>, Status> {
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" => Method::NotAllowed,
        _ => Method::Unknown,
    };
    let mut request = Request {
        method,
        path: path_of(target.as_bytes()).unwrap_or_default(),
        version,
        keep_alive: version == 1,
        has_body: false,
        choosy: false,
        fields: Fields::default(),
    };
    let mut hosts = 0u32;
    let mut lengths = 0u32;
    let mut close = false;
    for line in lines {
        let (name, value) = (line.name.as_bytes(), line.value);
        // By length first: most fields are then told from the interesting ones by one comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                if !is_host(value) {
                    return Err(Status::BAD_REQUEST);
                }
            }
            5 if name.eq_ignore_ascii_case(b"range") => {
                keep_first(&mut request.fields.range, value);
                request.choosy = true;
            }
            8 if name.eq_ignore_ascii_case(b"if-range") => {
                keep_first(&mut request.fields.if_range, value);
            }
            8 if name.eq_ignore_ascii_case(b"if-match") => {
                keep_first(&mut request.fields.if_match, value);
                request.choosy = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        request.keep_alive = true;
                    }
                }
            }
            13 if name.eq_ignore_ascii_case(b"if-none-match") => {
                keep_first(&mut request.fields.if_none_match, value);
                request.choosy = true;
            }
            // Several lengths, even equal ones, and any transfer coding on a request that has no
            // use for a body are how requests are smuggled past a proxy (RFC 9112 section 11.2).
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                lengths += 1;
                request.has_body |= length(value)? > 0;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                return Err(Status::BAD_REQUEST);
            }
            17 if name.eq_ignore_ascii_case(b"if-modified-since") => {
                keep_first(&mut request.fields.if_modified_since, value);
                request.choosy = true;
            }
            19 if name.eq_ignore_ascii_case(b"if-unmodified-since") => {
                keep_first(&mut request.fields.if_unmodified_since, value);
                request.choosy = true;
            }
            _ => {}
        }
    }
    // RFC 9112 section 3.2: exactly one host, from HTTP/1.1 on.
    if hosts > 1 || (hosts == 0 && version >= 1) || lengths > 1 {
        return Err(Status::BAD_REQUEST);
    }
    request.keep_alive &= !close;
    if request.path.is_empty() && matches!(method, Method::Get | Method::Head) {
        return Err(Status::BAD_REQUEST);
    }
    Ok(request)
}

fn keep_first<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8]) {
    slot.get_or_insert(value);
}

/// The path of a target in origin form or absolute form (RFC 9112 section 3.2).
#[inline]
fn path_of(target: &[u8]) -> Option<&[u8]> {
    let path = if target.first() == Some(&b'/') {
        target
    } else {
        let rest = strip_scheme(target)?;
        match rest.iter().position(|&byte| matches!(byte, b'/' | b'?')) {
            Some(0) => return None,
            Some(at) if rest[at] == b'/' => &rest[at..],
            _ if rest.is_empty() => return None,
            _ => b"/",
        }
    };
    match path.iter().position(|&byte| byte == b'?') {
        Some(end) => path.get(..end),
        None => Some(path),
    }
}

fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// Whether a `Host` could be one; which one does not matter to us. It may be empty.
#[inline]
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|&byte| HOST_BYTES[usize::from(byte)])
}

/// Bytes that may stand in a `Host`.
const HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_graphic();
        byte += 1;
    }
    let not = b"/?#@\\,\"<>{}|^`";
    let mut at = 0;
    while at < not.len() {
        table[not[at] as usize] = false;
        at += 1;
    }
    table
};

fn length(value: &[u8]) -> Result<u64, Status> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Status::BAD_REQUEST);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Status::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Request<'_> {
        match parse(text.as_bytes()) {
            Parsed::Request(request, len) => {
                assert_eq!(len, text.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    fn status(text: &str) -> Status {
        match parse(text.as_bytes()) {
            Parsed::Bad(status) => status,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn targets_give_paths() {
        for (target, path) in [
            ("/a", "/a"),
            ("/a?b=/c", "/a"),
            ("/?", "/"),
            ("http://h/a?x", "/a"),
            ("HTTP://h:80", "/"),
            ("https://h?x=/y", "/"),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(request(&text).path, path.as_bytes(), "{target}");
        }
        for target in ["*", "a", "http:///a", "http://", "ftp://h/a", "h:80"] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(status(&text), Status::BAD_REQUEST, "{target}");
        }
    }

    #[test]
    fn connections_persist_as_the_version_says() {
        for (version, field, keep) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: foo, Close\r\n", false),
            ("1.1", "Connection: close\r\nConnection: keep-alive\r\n", false),
            ("1.0", "", false),
            ("1.0", "connection: Keep-Alive\r\n", true),
        ] {
            let text = format!("GET / HTTP/{version}\r\nHost: h\r\n{field}\r\n");
            assert_eq!(request(&text).keep_alive, keep, "{version} {field}");
        }
    }

    #[test]
    fn smuggling_is_refused() {
        for fields in [
            "Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            "Host: h\r\nContent-Length: 1, 1\r\n",
            "Host: h\r\nContent-Length: +1\r\n",
            "Host: h\r\nContent-Length: 99999999999999999999999\r\n",
            "Host: h\r\nContent-Length:\r\n",
            "Host: h\r\nTransfer-Encoding: chunked\r\n",
            "Host: h\r\nTransfer-Encoding: xchunked\r\nContent-Length: 3\r\n",
            "Host: h\r\nX: a\r\n folded\r\n",
            "Host : h\r\n",
            "Host: a\r\nHost: b\r\n",
            "Host: a/b\r\n",
            "X: y\r\n",
        ] {
            assert_eq!(
                status(&format!("GET / HTTP/1.1\r\n{fields}\r\n")),
                Status::BAD_REQUEST,
                "{fields}"
            );
        }
        assert!(request("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n").has_body);
        assert!(!request("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").has_body);
        assert!(!request("GET / HTTP/1.0\r\n\r\n").has_body);
    }

    #[test]
    fn versions_methods_and_sizes() {
        assert_eq!(status("GET / HTTP/2.0\r\n\r\n"), Status::VERSION_NOT_SUPPORTED);
        assert_eq!(status("GET / HTTP/1.7\r\n\r\n"), Status::VERSION_NOT_SUPPORTED);
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Status::VERSION_NOT_SUPPORTED);
        assert_eq!(status("GET / ICAP/1.0\r\n\r\n"), Status::BAD_REQUEST);
        assert_eq!(status("\x16\x03\x01\x02\x00"), Status::BAD_REQUEST);
        let many = "X: y\r\n".repeat(FIELDS_MAX + 1);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Status::FIELDS_TOO_LARGE);
        for (method, want) in [
            ("GET", Method::Get),
            ("HEAD", Method::Head),
            ("POST", Method::NotAllowed),
            ("get", Method::Unknown),
            ("BREW", Method::Unknown),
        ] {
            assert_eq!(request(&format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n")).method, want);
        }
        assert_eq!(request("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").method, Method::NotAllowed);
    }

    #[test]
    fn every_beginning_of_a_request_is_partial() {
        let text = b"GET /a HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\r\n";
        for end in 0..text.len() {
            assert!(matches!(parse(&text[..end]), Parsed::Partial), "{end}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn paths_begin_with_a_slash(target in "[!-~]{1,30}") {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            if let Parsed::Request(request, _) = parse(text.as_bytes()) {
                prop_assert_eq!(request.path.first(), Some(&b'/'));
                prop_assert!(!request.path.contains(&b'?'));
            }
        }
    }
}
