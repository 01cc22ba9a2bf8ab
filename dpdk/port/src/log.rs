//! DPDK's log, routed to `tracing`.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

/// Messages that drivers print at warning level or worse where nothing is wrong: net_tap without
/// the kernel's multiq qdisc or a secondary process, and with its real-time signals switched off;
/// net_memif without secondary processes; drivers that are asked for interrupts and have none.
const HARMLESS: [&str; 9] = [
    "x Intr ",
    "multiq qdisc",
    "qdisc kind is unknown",
    "rte flow support",
    "send start req to secondary",
    "send stop req to secondary",
    "rt-signals",
    "register mp action callback",
    // Of 1 GiB pages, where 2 MiB pages are used.
    "hugepages reported on node",
];

/// The last warning or error: what an error sentence quotes.
static LAST: Mutex<String> = Mutex::new(String::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Warn,
    Debug,
    Trace,
}

/// Quiet by default: only what DPDK calls a warning or worse is a warning here.
fn classify(level: u32, text: &str) -> Level {
    if HARMLESS.iter().any(|harmless| text.contains(harmless)) {
        Level::Debug
    } else if level <= dpdk_sys::RTE_LOG_WARNING {
        Level::Warn
    } else if level <= dpdk_sys::RTE_LOG_INFO {
        Level::Debug
    } else {
        Level::Trace
    }
}

unsafe extern "C" fn sink(level: u32, text: *const c_char, len: usize) {
    // SAFETY: the shim passes the buffer that stdio hands to the stream's write function.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    for line in String::from_utf8_lossy(bytes).lines() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        match classify(level, line) {
            Level::Warn => {
                tracing::warn!(target: "dpdk", "{line}");
                *LAST.lock().unwrap_or_else(PoisonError::into_inner) = line.to_string();
            }
            Level::Debug => tracing::debug!(target: "dpdk", "{line}"),
            Level::Trace => tracing::trace!(target: "dpdk", "{line}"),
        }
    }
}

/// Takes over DPDK's log stream.
pub(crate) fn route() {
    // SAFETY: `sink` lives as long as the process and may be called from any thread. If the stream
    // cannot be made DPDK goes on logging to stderr.
    unsafe { dpdk_sys::shim_log_open(Some(sink)) };
}

/// Forgets earlier messages, before an operation that may fail.
pub(crate) fn clear() {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// What DPDK last complained of, else the text of `code` (an errno).
pub(crate) fn reason(code: i32) -> String {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if last.is_empty() { std::io::Error::from_raw_os_error(code.abs()).to_string() } else { last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_are_loud_and_known_noise_is_not() {
        use dpdk_sys::{RTE_LOG_DEBUG, RTE_LOG_ERR, RTE_LOG_NOTICE, RTE_LOG_WARNING};
        assert_eq!(classify(RTE_LOG_ERR, "EAL: no memory"), Level::Warn);
        assert_eq!(classify(RTE_LOG_WARNING, "something"), Level::Warn);
        assert_eq!(classify(RTE_LOG_NOTICE, "something"), Level::Debug);
        assert_eq!(classify(RTE_LOG_DEBUG, "something"), Level::Trace);
        assert_eq!(
            classify(RTE_LOG_ERR, "tap_create(): Failed to create multiq qdisc."),
            Level::Debug
        );
    }
}
