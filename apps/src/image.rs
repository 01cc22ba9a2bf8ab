//! `millstream image`: packs a directory into an image.

use std::fs::{self, File};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millstream::disk::erofs::{Image, Packed, Plan};

use crate::cli::ImageArgs;
use crate::error::AppError;
use crate::output::say;
use crate::source::is_block_device;

/// Packs, and reads back what was packed.
pub fn run(args: &ImageArgs) -> Result<(), AppError> {
    let start = Instant::now();
    let onto_device = is_block_device(&args.file);
    if onto_device && !args.overwrite_device {
        return Err(AppError::usage(format!(
            "`{}` is a device and everything on it would be lost: add --overwrite-device if that is meant",
            args.file.display()
        )));
    }
    let plan = Plan::scan(&args.dir).map_err(AppError::usage)?;
    let packed = if onto_device { onto(&plan, &args.file)? } else { into(&plan, &args.file)? };
    let image = Image::open(&args.file).map_err(AppError::runtime)?;
    if image.uuid() != packed.uuid {
        return Err(AppError::runtime(format!(
            "`{}` does not hold what was written to it; check the disk",
            args.file.display()
        )));
    }
    let seconds = start.elapsed().as_secs_f64();
    let mib = packed.image_bytes as f64 / f64::from(1 << 20);
    let uuid: String = packed.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut lines = vec![
        ("image", args.file.display().to_string()),
        ("files", plan.files().to_string()),
        ("size", format!("{mib:.1} MiB")),
        ("UUID", uuid),
        ("took", format!("{seconds:.1} s, {:.0} MiB/s", mib / seconds.max(1e-3))),
    ];
    if plan.skipped() > 0 {
        lines.push(("left out", format!("{} pipes, sockets and devices", plan.skipped())));
    }
    let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:<10}{value}")).collect();
    say(lines.join("\n"));
    Ok(())
}

/// A bar on a terminal, and nothing elsewhere.
fn write(plan: &Plan, out: &File) -> Result<Packed, AppError> {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(plan.image_bytes()), target);
    let style = "{wide_bar:.cyan/238} {percent:>3}%  {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    let packed = plan.write(out, |done| bar.set_position(done)).map_err(AppError::runtime);
    bar.finish_and_clear();
    packed
}

/// Writes beside `path` and renames: whoever serves it has the old image or the new one, whole.
fn into(plan: &Plan, path: &Path) -> Result<Packed, AppError> {
    let cannot = |error: io::Error| {
        AppError::runtime(format!(
            "cannot write `{}` ({error}); check its directory and the space that is left",
            path.display()
        ))
    };
    let Some(name) = path.file_name() else {
        return Err(AppError::usage(format!("`{}` names no file", path.display())));
    };
    let mut beside = name.to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Beside(path.with_file_name(beside));
    let out = File::create_new(&beside.0).map_err(cannot)?;
    let packed = write(plan, &out)?;
    fs::rename(&beside.0, path).map_err(cannot)?;
    Ok(packed)
}

/// A file that goes if it was not renamed.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes over a block device, after the user has typed its name. The kernel refuses a device that
/// is mounted or that another driver uses.
fn onto(plan: &Plan, path: &Path) -> Result<Packed, AppError> {
    let cannot = |error: io::Error| {
        AppError::runtime(format!(
            "cannot open the device `{}` ({error}); it must not be mounted, nor used by anything else",
            path.display()
        ))
    };
    let mut options = File::options();
    let mut out = options.read(true).write(true).custom_flags(libc::O_EXCL);
    out = out.truncate(false);
    let device = out.open(path).map_err(cannot)?;
    let room = io::Seek::seek(&mut &device, io::SeekFrom::End(0)).map_err(cannot)?;
    if room < plan.image_bytes() {
        return Err(AppError::usage(format!(
            "the image has {} bytes and `{}` room for {room}; take a larger device",
            plan.image_bytes(),
            path.display()
        )));
    }
    eprint!("All that is on {} will be lost. Type its name to go on: ", path.display());
    io::stderr().flush().map_err(AppError::runtime)?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed).map_err(AppError::runtime)?;
    if Path::new(typed.trim()) != path {
        return Err(AppError::usage(format!(
            "nothing was written: `{}` was not typed",
            path.display()
        )));
    }
    write(plan, &device)
}
