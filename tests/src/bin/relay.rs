//! An impaired path between two packet sockets; see [`millstream_tests::relay`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    ExitCode::from(millstream_tests::relay::main(args.iter().map(String::as_str)))
}
