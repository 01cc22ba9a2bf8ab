//! The plot: latency by percentile.
//!
//! The horizontal axis is the logarithm of `1 / (1 - p)`, so that each further nine gets the same
//! room: the tail is what such a plot is for.

use std::path::Path;

use hdrhistogram::Histogram;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::nanos;

pub(super) const INK: RGBColor = RGBColor(0x22, 0x2b, 0x36);
pub(super) const FAINT: RGBColor = RGBColor(0x6b, 0x76, 0x84);
pub(super) const GRID: RGBColor = RGBColor(0xe3, 0xe7, 0xec);
const LINE: RGBColor = RGBColor(0x0b, 0x6e, 0x8f);
pub(super) const FONT: &str = "DejaVu Sans, Verdana, sans-serif";

/// Percentiles that are marked on the curve.
const MARKS: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// An axis with given marks, linear in what it is given.
pub(super) struct Axis {
    pub(super) range: std::ops::Range<f64>,
    pub(super) marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Axis {}

/// Where percentile `p` lies: one unit a nine.
fn nines(p: f64) -> f64 {
    -(1.0 - p).max(1e-12).log10()
}

/// Name of the percentile at `nines` whole nines: 0, 90, 99, 99.9, ...
fn percentile_name(nines: usize) -> String {
    match nines {
        0 => "0".to_owned(),
        1 => "90".to_owned(),
        2 => "99".to_owned(),
        more => format!("99.{}", "9".repeat(more - 2)),
    }
}

/// The curve: nines and log10 of nanoseconds.
fn curve(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = latency.len() as f64;
    // The largest of n values stands for the percentile 1 - 1/n; beyond it nothing was seen.
    let last = nines(1.0 - 1.0 / count.max(2.0));
    let steps = 600;
    (0..=steps)
        .map(|step| {
            let x = last * f64::from(step) / f64::from(steps);
            let value = latency.value_at_quantile(1.0 - 10f64.powf(-x)).max(1);
            (x, (value as f64).log10())
        })
        .collect()
}

/// Round values from `low` to `high` (log10 of nanoseconds): 1, 2, 5 in each decade, or 1 if there
/// are many decades.
pub(super) fn marks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high - low > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    (low.floor() as i32..=high.ceil() as i32)
        .flat_map(|decade| steps.iter().map(move |step| f64::from(decade) + step.log10()))
        .filter(|mark| *mark >= low - 1e-9 && *mark <= high + 1e-9)
        .collect()
}

/// Draws the latencies of a run, of requests as a rule, into an SVG file.
///
/// # Errors
/// One sentence.
pub fn draw(
    path: &Path,
    title: &str,
    subtitle: &str,
    of: &str,
    latency: &Histogram<u64>,
) -> Result<(), String> {
    if latency.is_empty() {
        return Err(format!("no {of} were measured: there is nothing to plot"));
    }
    // Into a string first: a failed write is then an error here and not a panic in a destructor.
    let mut svg = String::new();
    paint(&mut svg, title, subtitle, of, latency).map_err(|error| error.to_string())?;
    std::fs::write(path, svg).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn paint(
    svg: &mut String,
    title: &str,
    subtitle: &str,
    of: &str,
    latency: &Histogram<u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = curve(latency);
    let low = points.first().map_or(0.0, |point| point.1);
    let high = (latency.max().max(1) as f64).log10();
    // Room for a label above the highest point; at least a third of a decade in all.
    let low = low - 0.08;
    let high = (high + 0.12).max(low + 0.33);
    let end = points.last().map_or(1.0, |point| point.0);

    let root = SVGBackend::with_string(svg, (960, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32, color: &RGBColor| (FONT, size).into_font().color(color);
    root.draw(&Text::new(title.to_owned(), (78, 20), text(20, &INK)))?;
    root.draw(&Text::new(subtitle.to_owned(), (78, 48), text(14, &FAINT)))?;
    let plot = root.margin(76, 12, 4, 40);
    let x = Axis { range: 0.0..end * 1.04, marks: (0..=end as u32).map(f64::from).collect() };
    let y = Axis { range: low..high, marks: marks(low, high) };
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(52)
        .y_label_area_size(80)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .x_desc(format!("percentile of {of} (%)"))
        .y_desc("latency")
        .axis_desc_style(text(14, &FAINT))
        .label_style(text(13, &INK))
        .x_label_formatter(&|x| percentile_name(x.round() as usize))
        .y_label_formatter(&|y| nanos(10f64.powf(*y)))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(2)))?;
    // The curve never falls: below and to the right of a point there is room.
    let below = text(13, &INK).pos(Pos::new(HPos::Left, VPos::Top));
    let above = text(13, &INK).pos(Pos::new(HPos::Right, VPos::Bottom));
    let labelled =
        |(x, y): (f64, f64), name: String, at: (i32, i32), style: &TextStyle<'static>| {
            EmptyElement::at((x, y))
                + Circle::new((0, 0), 4, LINE.filled())
                + Text::new(name, at, style.clone())
        };
    for (name, quantile) in MARKS {
        if nines(quantile) < end - 0.2 {
            let value = latency.value_at_quantile(quantile).max(1) as f64;
            let name = format!("{name} {}", nanos(value));
            chart.draw_series([labelled(
                (nines(quantile), value.log10()),
                name,
                (7, 6),
                &below,
            )])?;
        }
    }
    let max = latency.max().max(1) as f64;
    let name = format!("max {}", nanos(max));
    chart.draw_series([labelled((end, max.log10()), name, (4, -7), &above)])?;
    root.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_are_named_in_round_numbers() {
        let names: Vec<_> = (0..6).map(percentile_name).collect();
        assert_eq!(names, ["0", "90", "99", "99.9", "99.99", "99.999"]);
        assert!((nines(0.999) - 3.0).abs() < 1e-9);
        let values: Vec<_> = marks(3.9, 5.05).iter().map(|y| nanos(10f64.powf(*y))).collect();
        assert_eq!(values, ["10.0 us", "20.0 us", "50.0 us", "100 us"]);
    }

    #[test]
    fn the_plot_names_what_it_shows() {
        let mut latency = Histogram::<u64>::new(3).unwrap();
        (0..10_000).for_each(|i| latency.record(20_000 + i * i / 100).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        draw(&path, "a title", "64 connections", "requests", &latency).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["a title", "64 connections", "p99.9", "percentile of requests", "us"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(draw(&path, "", "", "requests", &Histogram::new(3).unwrap()).is_err());
        assert!(
            draw(dir.path(), "t", "s", "requests", &latency).unwrap_err().contains("cannot write")
        );
    }
}
