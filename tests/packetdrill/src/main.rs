//! Plays scripts: `packetdrill-player SCRIPT...`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use millstream_packetdrill::player::play_file;

fn main() -> ExitCode {
    let mut failed = 0;
    let scripts: Vec<String> = std::env::args().skip(1).collect();
    for script in &scripts {
        match play_file(Path::new(script)) {
            Ok(()) => println!("passed  {script}"),
            Err(failure) => {
                failed += 1;
                println!("FAILED  {script}: {failure}");
            }
        }
    }
    println!("{} of {} scripts passed", scripts.len() - failed, scripts.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
