//! Conditional requests (RFC 9110 section 13).

use std::time::SystemTime;

use crate::date;
use crate::request::Fields;

/// What identifies the content of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validators<'a> {
    /// A strong entity tag, with its quotes.
    pub etag: &'a [u8],
    /// Time of last change in whole seconds.
    pub modified: SystemTime,
}

/// How the conditions of a request turn out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Send it.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the conditions in the order of RFC 9110 section 13.2.2.
pub(crate) fn evaluate(fields: &Fields<'_>, file: &Validators<'_>) -> Outcome {
    if let Some(tags) = fields.if_match {
        if !any_tag(tags, file.etag, false) {
            return Outcome::Failed;
        }
    } else if let Some(date) = fields.if_unmodified_since.and_then(date::parse)
        && file.modified > date
    {
        return Outcome::Failed;
    }
    if let Some(tags) = fields.if_none_match {
        if any_tag(tags, file.etag, true) {
            return Outcome::NotModified;
        }
    } else if let Some(date) = fields.if_modified_since.and_then(date::parse)
        && file.modified <= date
    {
        return Outcome::NotModified;
    }
    Outcome::Proceed
}

/// Whether a `Range` counts: there is no `If-Range`, or it names exactly this content.
pub(crate) fn range_counts(if_range: Option<&[u8]>, file: &Validators<'_>) -> bool {
    match if_range.map(<[u8]>::trim_ascii) {
        None => true,
        Some(tag) if tag.starts_with(b"\"") || tag.starts_with(b"W/") => tag == file.etag,
        Some(date) => date::parse(date) == Some(file.modified),
    }
}

/// Whether a list of tags, or `*`, has the tag. The weak comparison takes `W/"x"` for `"x"`.
fn any_tag(list: &[u8], etag: &[u8], weak: bool) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    // Our tags have no comma in them, so a split inside a foreign tag cannot make a match.
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).any(|tag| {
        let tag = if weak { tag.strip_prefix(b"W/").unwrap_or(tag) } else { tag };
        tag == etag
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const BEFORE: &[u8] = b"Sun, 06 Nov 1994 08:49:36 GMT";
    const SAME: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    fn file() -> Validators<'static> {
        let modified = UNIX_EPOCH + Duration::from_secs(784_111_777);
        Validators { etag: b"\"1-2\"", modified }
    }

    fn outcome(set: impl FnOnce(&mut Fields<'static>)) -> Outcome {
        let mut fields = Fields::default();
        set(&mut fields);
        evaluate(&fields, &file())
    }

    #[test]
    fn tags_decide_before_dates() {
        use Outcome::*;
        assert_eq!(outcome(|_| {}), Proceed);
        assert_eq!(outcome(|f| f.if_none_match = Some(b"\"1-2\"")), NotModified);
        assert_eq!(outcome(|f| f.if_none_match = Some(b"\"9\" , W/\"1-2\"")), NotModified);
        assert_eq!(outcome(|f| f.if_none_match = Some(b"*")), NotModified);
        assert_eq!(outcome(|f| f.if_none_match = Some(b"1-2")), Proceed);
        assert_eq!(
            outcome(|f| {
                f.if_none_match = Some(b"\"9\"");
                f.if_modified_since = Some(SAME);
            }),
            Proceed
        );
        assert_eq!(outcome(|f| f.if_match = Some(b"\"1-2\"")), Proceed);
        assert_eq!(outcome(|f| f.if_match = Some(b"*")), Proceed);
        assert_eq!(outcome(|f| f.if_match = Some(b"W/\"1-2\"")), Failed);
        assert_eq!(outcome(|f| f.if_match = Some(b"\"9\"")), Failed);
    }

    #[test]
    fn dates_are_compared_by_the_second() {
        use Outcome::*;
        assert_eq!(outcome(|f| f.if_modified_since = Some(SAME)), NotModified);
        assert_eq!(outcome(|f| f.if_modified_since = Some(BEFORE)), Proceed);
        assert_eq!(outcome(|f| f.if_modified_since = Some(b"yesterday")), Proceed);
        assert_eq!(outcome(|f| f.if_unmodified_since = Some(SAME)), Proceed);
        assert_eq!(outcome(|f| f.if_unmodified_since = Some(BEFORE)), Failed);
    }

    #[test]
    fn if_range_takes_strong_tags_and_exact_dates() {
        for (value, want) in [
            (None, true),
            (Some(&b"\"1-2\""[..]), true),
            (Some(b"W/\"1-2\""), false),
            (Some(b"\"9\""), false),
            (Some(SAME), true),
            (Some(BEFORE), false),
            (Some(b"rubbish"), false),
        ] {
            assert_eq!(range_counts(value, &file()), want, "{value:?}");
        }
    }
}
