//! Standard output.

use std::fmt;
use std::io::{ErrorKind, Write};

/// Writes `text` and a new line. That nobody reads any more, as behind `| head -1`, is no fault; what
/// else goes wrong is a warning, since the work itself goes on.
pub fn say(text: impl fmt::Display) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            tracing::warn!("cannot write to standard output ({error})");
        }
        _ => {}
    }
}
