//! `millstream bench semantics`: what each data semantics costs, by length.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use millstream::buf::DataSemantics;
use plotters::prelude::*;
use serde::Serialize;

use super::BenchError;
use super::report::nanos;
use super::transfers::{Case, Transfers};
use crate::output::say;

/// Lengths in bytes.
const SIZES: [usize; 9] = [64, 256, 1024, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
/// Transfers of each kind before the first that counts.
const WARM_UP: usize = 3;

/// Compares the eight data semantics.
#[derive(Debug, Args)]
pub struct SemanticsArgs {
    /// Transfers of each kind; the median counts.
    #[arg(long, default_value_t = 31, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    transfers: u16,
    /// Draw time by length, cold data that nobody touches.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A kind of transfer, measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    semantics: &'static str,
    bytes: usize,
    cold: bool,
    touches: bool,
    ns: f64,
    copied_bytes: u64,
}

/// Measures and prints.
pub fn run(args: &SemanticsArgs) -> Result<(), BenchError> {
    let failed = |error: Box<dyn std::error::Error>| BenchError::Transfer(error.to_string());
    let mut world = Transfers::new().map_err(failed)?;
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some((SIZES.len() * 4) as u64), target);
    let mut rows = Vec::new();
    for len in SIZES {
        for (cold, touches) in [(false, false), (false, true), (true, false), (true, true)] {
            rows.extend(measure(&mut world, len, cold, touches, args.transfers).map_err(failed)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let threshold = world.thresholds().copy_below_bytes;
    say(table(&rows, threshold));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).unwrap_or_default();
        std::fs::write(path, text + "\n").map_err(|source| BenchError::File {
            what: "write",
            path: path.clone(),
            source,
        })?;
    }
    if let Some(path) = &args.plot {
        draw(path, &rows).map_err(BenchError::Plot)?;
        say(format_args!("plot  {}", path.display()));
    }
    Ok(())
}

/// All eight in turn, so that what slows the machine down slows all of them.
fn measure(
    world: &mut Transfers,
    len: usize,
    cold: bool,
    touches: bool,
    transfers: u16,
) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let mut costs = vec![(Vec::new(), 0); DataSemantics::ALL.len()];
    for round in 0..WARM_UP + usize::from(transfers) {
        for turn in 0..DataSemantics::ALL.len() {
            // What went before is still in the caches, so the order changes.
            let at = (turn + round) % DataSemantics::ALL.len();
            let (semantics, (times, copied)) = (DataSemantics::ALL[at], &mut costs[at]);
            let cost = world.run(Case { semantics, len, cold, touches })?;
            if round >= WARM_UP {
                times.push(cost.ns);
                *copied = cost.copied_bytes;
            }
        }
    }
    let rows = DataSemantics::ALL.into_iter().zip(costs).map(|(semantics, (mut times, copied))| {
        times.sort_by(f64::total_cmp);
        let ns = times[times.len() / 2];
        Row { semantics: semantics.name(), bytes: len, cold, touches, ns, copied_bytes: copied }
    });
    Ok(rows.collect())
}

fn find(rows: &[Row], semantics: &str, bytes: usize, cold: bool, touches: bool) -> Option<Row> {
    let is_it = |row: &&Row| {
        row.semantics == semantics
            && row.bytes == bytes
            && row.cold == cold
            && row.touches == touches
    };
    rows.iter().find(is_it).copied()
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn table(rows: &[Row], threshold: usize) -> String {
    let mut out = String::from(
        "Time of the sending shard for one transfer, from the call until its memory is free; over a link\n\
         that looks as a card with DMA and checksums. \"touched\": the writer changes a byte of each 16 KiB.\n\
         In brackets: bytes copied, if any.\n",
    );
    for len in SIZES {
        let _ = writeln!(
            out,
            "\n{:<20}{:>21}{:>23}{:>23}{:>23}",
            size(len),
            "warm",
            "warm, touched",
            "cold",
            "cold, touched"
        );
        for semantics in DataSemantics::ALL {
            let _ = write!(out, "{:<20}", semantics.name());
            for (cold, touches) in [(false, false), (false, true), (true, false), (true, true)] {
                let Some(row) = find(rows, semantics.name(), len, cold, touches) else { continue };
                let copied = match row.copied_bytes {
                    0 => String::new(),
                    bytes => format!("[{bytes}]"),
                };
                let _ = write!(out, " {:>11} {copied:<10}", nanos(row.ns));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
    }
    let _ = writeln!(
        out,
        "\nThe emulated semantics of an application's own buffers copy below {threshold} bytes (measured at \
         the start).\nFaster than copy from:"
    );
    for semantics in DataSemantics::ALL.into_iter().skip(1) {
        let from = |cold| crossover(rows, semantics.name(), cold).map_or("nowhere".into(), size);
        let _ = writeln!(
            out,
            "  {:<20}{:>9} warm {:>9} cold",
            semantics.name(),
            from(false),
            from(true)
        );
    }
    out.truncate(out.trim_end().len());
    out
}

/// The shortest length from which a semantics is faster than copy for good.
fn crossover(rows: &[Row], semantics: &str, cold: bool) -> Option<usize> {
    let slower = |len: &usize| {
        let ours = find(rows, semantics, *len, cold, false).map_or(f64::INFINITY, |row| row.ns);
        let copy = find(rows, "copy", *len, cold, false).map_or(0.0, |row| row.ns);
        ours >= copy
    };
    match SIZES.iter().rposition(slower) {
        None => SIZES.first().copied(),
        Some(last) => SIZES.get(last + 1).copied(),
    }
}

const INK: RGBColor = RGBColor(0x22, 0x2b, 0x36);
const FONT: &str = "DejaVu Sans, Verdana, sans-serif";
const COLORS: [RGBColor; 8] = [
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0x0b, 0x6e, 0x8f),
    RGBColor(0xb7, 0x95, 0x0b),
    RGBColor(0x1e, 0x84, 0x49),
    RGBColor(0x7d, 0x3c, 0x98),
    RGBColor(0xa0, 0x40, 0x00),
    RGBColor(0x5d, 0x6d, 0x7e),
    RGBColor(0x17, 0x20, 0x2a),
];

/// Time by length, both logarithmic: cold data that nobody touches.
fn draw(path: &Path, rows: &[Row]) -> Result<(), String> {
    let mut svg = String::new();
    paint(&mut svg, rows).map_err(|error| error.to_string())?;
    std::fs::write(path, svg).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn paint(svg: &mut String, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let shown: Vec<_> = rows.iter().filter(|row| row.cold && !row.touches).collect();
    let low = shown.iter().map(|row| row.ns).fold(f64::INFINITY, f64::min);
    let high = shown.iter().map(|row| row.ns).fold(0.0, f64::max);
    if !low.is_finite() || low <= 0.0 {
        return Err("nothing was measured".into());
    }
    let root = SVGBackend::with_string(svg, (960, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| (FONT, size).into_font().color(&INK);
    root.draw(&Text::new("One transfer under the eight data semantics", (78, 20), text(20)))?;
    root.draw(&Text::new("sending shard, data not in cache, not touched", (78, 48), text(14)))?;
    let x = (SIZES[0] as f64..SIZES[SIZES.len() - 1] as f64).log_scale();
    let y = (low * 0.8..high * 1.3).log_scale();
    let mut chart = ChartBuilder::on(&root.margin(76, 12, 4, 20))
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("bytes")
        .y_desc("time")
        .x_label_formatter(&|bytes| size(*bytes as usize))
        .y_label_formatter(&|ns| nanos(*ns))
        .draw()?;
    for (semantics, color) in DataSemantics::ALL.into_iter().zip(COLORS) {
        let of = shown.iter().filter(|row| row.semantics == semantics.name());
        let points: Vec<_> = of.map(|row| (row.bytes as f64, row.ns)).collect();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(semantics.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(0xe3, 0xe7, 0xec))
        .label_font(text(13))
        .draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(copy: fn(usize) -> f64) -> Vec<Row> {
        let mut rows = Vec::new();
        for bytes in SIZES {
            for semantics in DataSemantics::ALL {
                let ns = if semantics == DataSemantics::Copy { copy(bytes) } else { 100.0 };
                let semantics = semantics.name();
                for (cold, touches) in [(false, false), (false, true), (true, false), (true, true)]
                {
                    rows.push(Row { semantics, bytes, cold, touches, ns, copied_bytes: 0 });
                }
            }
        }
        rows
    }

    #[test]
    fn the_crossover_is_where_copying_stays_slower() {
        let rows = rows(|bytes| bytes as f64 / 10.0);
        assert_eq!(crossover(&rows, "emulated_copy", true), Some(1024));
        let text = table(&rows, 200);
        assert!(text.contains("emulated_weak_move") && text.contains("4 MiB"), "{text}");
        assert_eq!(crossover(&self::rows(|_| 1.0), "share", false), None);
        assert_eq!(crossover(&self::rows(|_| 1e9), "share", false), Some(64));
    }

    #[test]
    fn each_semantics_copies_what_it_says() {
        let mut world = Transfers::new().unwrap();
        for len in [40, 5_000, 100_000] {
            for semantics in DataSemantics::ALL {
                for touches in [false, true] {
                    let cold = touches;
                    let cost = world.run(Case { semantics, len, cold, touches }).unwrap();
                    let threshold = world.thresholds().copy_below_bytes;
                    let by_call = if semantics.copies(len, threshold) { len } else { 0 };
                    let on_write = semantics == DataSemantics::EmulatedCopy && touches;
                    let blocks = if on_write && by_call == 0 { len } else { 0 };
                    assert_eq!(
                        cost.copied_bytes,
                        (by_call + blocks) as u64,
                        "{semantics}, {len} bytes, touched: {touches}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_plot_names_all_eight() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&path, &rows(|bytes| bytes as f64)).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for semantics in DataSemantics::ALL {
            assert!(svg.contains(semantics.name()), "{semantics} is missing");
        }
        assert!(draw(&path, &[]).is_err());
    }
}
