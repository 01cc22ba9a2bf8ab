//! From a request's target to a name below the root.

/// The target is no path that is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPath;

/// Writes the canonical form of a target's path (without its query) to `out`: decoded, a leading
/// slash, no empty segments, no `.` segments; a trailing slash is kept.
///
/// Refused are `..` in any spelling (clients resolve it before they send, RFC 3986 section 5.2.4),
/// encoded slashes and backslashes, NUL, and what may not stand in a target at all. The root's
/// kernel lookup is the second wall, not the only one.
pub(crate) fn canonicalize(path: &[u8], out: &mut Vec<u8>) -> Result<(), BadPath> {
    out.clear();
    let path = path.strip_prefix(b"/").ok_or(BadPath)?;
    for segment in path.split(|&byte| byte == b'/') {
        out.push(b'/');
        let start = out.len();
        let mut rest = segment.iter();
        while let Some(&byte) = rest.next() {
            let decoded = match byte {
                b'%' => {
                    let high = rest.next().and_then(|&digit| hex(digit)).ok_or(BadPath)?;
                    let low = rest.next().and_then(|&digit| hex(digit)).ok_or(BadPath)?;
                    let decoded = high << 4 | low;
                    if matches!(decoded, 0 | b'/' | b'\\') {
                        return Err(BadPath);
                    }
                    decoded
                }
                0..=b' ' | 0x7f | b'\\' | b'#' | b'?' => return Err(BadPath),
                byte => byte,
            };
            out.push(decoded);
        }
        match out.get(start..) {
            Some(b"..") => return Err(BadPath),
            // The slash of this segment goes, and the next segment brings its own.
            Some(b"." | b"") => out.truncate(start - 1),
            _ => {}
        }
    }
    // The last segment was empty or `.`: a directory is meant.
    let directory =
        matches!(path.rsplit(|&byte| byte == b'/').next(), Some(b"" | b"." | b"%2e" | b"%2E"));
    if directory {
        out.push(b'/');
    }
    Ok(())
}

/// The name to open below the root: without the leading slash, and the index of a directory.
pub(crate) fn file_name(canonical: &[u8]) -> Vec<u8> {
    let mut name = canonical.strip_prefix(b"/").unwrap_or(canonical).to_vec();
    if canonical.ends_with(b"/") {
        name.extend_from_slice(b"index.html");
    }
    name
}

/// Appends a canonical path in the spelling of a target: everything but RFC 3986's unreserved
/// characters and slashes is encoded.
pub(crate) fn encode(canonical: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in canonical {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'%', DIGITS[high], DIGITS[low]]);
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(path: &[u8]) -> Result<String, BadPath> {
        let mut out = Vec::new();
        canonicalize(path, &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn paths_are_made_canonical() {
        for (path, want) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("//a///b", "/a/b"),
            ("/./a/./b/.", "/a/b/"),
            ("/%61%20b", "/a b"),
            ("/a/%2e", "/a/"),
            ("/...", "/..."),
            ("/%25%32%65", "/%2e"),
            ("/a.b/..c", "/a.b/..c"),
        ] {
            assert_eq!(canonical(path.as_bytes()).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn climbing_and_trickery_are_refused() {
        for path in [
            "",
            "a",
            "/..",
            "/../a",
            "/a/../b",
            "/a/..",
            "/%2e%2e/a",
            "/.%2E/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a b",
            "/a#b",
            "/a\x7fb",
            "/%2e%2e%2fa",
        ] {
            assert_eq!(canonical(path.as_bytes()), Err(BadPath), "{path}");
        }
    }

    #[test]
    fn directories_have_an_index() {
        assert_eq!(file_name(b"/"), b"index.html");
        assert_eq!(file_name(b"/a/b"), b"a/b");
        assert_eq!(file_name(b"/a/"), b"a/index.html");
    }

    proptest! {
        /// Whatever comes, the name is relative and every part of it goes down.
        #[test]
        fn no_name_leaves_the_root(path in prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                "(/|\\.|\\.\\.|%2e|%2E|%2f|%5c|%00|a|%61|/\\.\\./|\\\\)".prop_map(String::into_bytes),
            ], 0..24)) {
            let path = [b"/".to_vec(), path.concat()].concat();
            let mut out = Vec::new();
            if canonicalize(&path, &mut out).is_ok() {
                prop_assert!(out.starts_with(b"/") && !out.starts_with(b"//"));
                let name = file_name(&out);
                prop_assert!(!name.contains(&0) && !name.starts_with(b"/"));
                let parts: Vec<_> = name.split(|&byte| byte == b'/').collect();
                prop_assert!(parts.iter().all(|part| !matches!(*part, b"" | b"." | b"..")), "{:?}", name);
            }
        }

        /// Encoding is undone by decoding, and canonical paths stay as they are.
        #[test]
        fn encoding_round_trips(segments in prop::collection::vec("[^/\\\\\0]{1,6}", 1..4)) {
            let path = format!("/{}", segments.join("/"));
            prop_assume!(segments.iter().all(|segment| segment != "." && segment != ".."));
            let mut encoded = Vec::new();
            encode(path.as_bytes(), &mut encoded);
            let mut out = Vec::new();
            prop_assert_eq!(canonicalize(&encoded, &mut out), Ok(()));
            prop_assert_eq!(out, path.as_bytes());
        }
    }
}
