//! A table as a picture: lines over logarithmic or linear axes.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bench::plot::{Axis, FAINT, FONT, GRID, INK, marks};

/// Colours that are told apart by most eyes, on paper too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x0b, 0x6e, 0x8f),
    RGBColor(0xc0, 0x50, 0x1a),
    RGBColor(0x6a, 0x4c, 0x93),
    RGBColor(0x3d, 0x8b, 0x4d),
    RGBColor(0xb0, 0x30, 0x5c),
    RGBColor(0x77, 0x77, 0x77),
];

/// A line through points.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name, which stands at its end.
    pub name: String,
    /// In the order of the horizontal axis.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Below the title.
    pub subtitle: String,
    /// What the horizontal axis is.
    pub x: &'static str,
    /// What the vertical axis is.
    pub y: &'static str,
    /// Both axes are logarithmic; else both begin at zero.
    pub logarithmic: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// Draws a chart into an SVG file.
///
/// # Errors
/// One sentence.
pub fn draw(path: &Path, title: &str, chart: &Chart) -> Result<(), String> {
    if chart.series.iter().all(|series| series.points.is_empty()) {
        return Err("nothing was measured: there is nothing to plot".to_owned());
    }
    let mut svg = String::new();
    paint(&mut svg, title, chart).map_err(|error| error.to_string())?;
    std::fs::write(path, svg).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The range of an axis that shows all `values`, with its marks.
fn axis(values: impl Iterator<Item = f64> + Clone, logarithmic: bool, room: f64) -> Axis {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    if logarithmic {
        let (low, high) = (low - 0.1, (high + 0.1).max(low + 0.5));
        return Axis { range: low..high + room * (high - low), marks: marks(low, high) };
    }
    // Steps of 1, 2 or 5 times a power of ten, five to ten of them.
    let high = if high > 0.0 { high } else { 1.0 };
    let decade = 10f64.powf((high / 10.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * decade);
    let step = step.into_iter().find(|step| high / step <= 10.0).unwrap_or(high);
    let count = (high / step).ceil() as u32;
    let marks = (0..=count).map(|mark| f64::from(mark) * step).collect();
    Axis { range: 0.0..f64::from(count) * step * (1.0 + room), marks }
}

/// A round value in few characters.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", (value / 1e4).round() / 100.0),
        value if value >= 1e4 => format!("{} k", (value / 10.0).round() / 100.0),
        value => format!("{}", (value * 100.0).round() / 100.0),
    }
}

fn paint(svg: &mut String, title: &str, chart: &Chart) -> Result<(), Box<dyn std::error::Error>> {
    let scale = |value: f64| if chart.logarithmic { value.max(1e-9).log10() } else { value };
    let back = |value: f64| if chart.logarithmic { 10f64.powf(value) } else { value };
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let root = SVGBackend::with_string(svg, (960, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32, color: &RGBColor| (FONT, size).into_font().color(color);
    root.draw(&Text::new(title.to_owned(), (78, 20), text(20, &INK)))?;
    root.draw(&Text::new(chart.subtitle.clone(), (78, 48), text(14, &FAINT)))?;
    let plot = root.margin(76, 12, 4, 40);
    // Room at the right for the names.
    let x = axis(points().map(|point| scale(point.0)), chart.logarithmic, 0.3);
    let y = axis(points().map(|point| scale(point.1)), chart.logarithmic, 0.0);
    let mut area = ChartBuilder::on(&plot)
        .x_label_area_size(52)
        .y_label_area_size(80)
        .build_cartesian_2d(x, y)?;
    area.configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .x_desc(chart.x)
        .y_desc(chart.y)
        .axis_desc_style(text(14, &FAINT))
        .label_style(text(13, &INK))
        .x_label_formatter(&|x| short(back(*x)))
        .y_label_formatter(&|y| short(back(*y)))
        .draw()?;
    for (i, series) in chart.series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<_> = series.points.iter().map(|(x, y)| (scale(*x), scale(*y))).collect();
        area.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        area.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        // Names in a column of their own: lines that end at the same place would hide them.
        let at = (720, 90 + 20 * i as i32);
        let label = text(13, &colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Circle::new(at, 4, colour.filled()))?;
        root.draw(&Text::new(series.name.clone(), (at.0 + 10, at.1), label))?;
    }
    root.present()?;
    drop(area);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_show_round_numbers() {
        let linear = axis([3.0, 47.0].into_iter(), false, 0.0);
        assert_eq!(linear.marks, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0]);
        assert_eq!(linear.range, 0.0..50.0);
        let log = axis([0.0, 5.0].into_iter(), true, 0.0);
        assert_eq!(log.marks, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!([0.25, 100.0, 24_100.0, 2e6].map(short), ["0.25", "100", "24.1 k", "2 M"]);
    }

    #[test]
    fn the_picture_names_its_lines() {
        let series =
            |name: &str| Series { name: name.into(), points: vec![(5.0, 1.0), (9.0, 7.0)] };
        let chart = Chart {
            subtitle: "how".into(),
            x: "packets",
            y: "ms",
            logarithmic: true,
            series: vec![series("by rate"), series("by acknowledgements")],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        draw(&path, "a title", &chart).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["a title", "how", "packets", "by rate", "by acknowledgements"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(draw(&path, "t", &Chart::default()).is_err());
    }
}
