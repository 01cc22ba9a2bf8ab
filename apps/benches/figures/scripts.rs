//! How many of the Linux kernel's own TCP scripts the stack passes.

use std::process::Command;

use millstream_packetdrill::kernel;

use crate::Measured;
use crate::figure::Figure;

/// Plays the portable scripts; gets them first if they are not there.
pub fn kernel() -> Measured {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    if kernel::folder().is_none() {
        Command::new("tools/kernel-scripts").current_dir(root).status()?;
    }
    let folder = kernel::folder().ok_or("the kernel's scripts cannot be had here")?;
    let (passed, of) = kernel::count(&folder)?;
    Ok(vec![Figure::exact("packetdrill.kernel.pass", passed as f64).with("of", of.into())])
}
