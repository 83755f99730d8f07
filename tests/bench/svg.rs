//! Three plain SVG charts: bars, dots, curves. Independent of the data. Colors follow the reader's light or dark
//! scheme; no script and no font is loaded.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 236.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 54.0;
const ROW: f64 = 26.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}\
.note{font-size:12px;fill:#59636e}.grid{stroke:#d1d9e0;stroke-width:1}.peer{fill:#8c959f}.ours{fill:#0969da}\
.limit{fill:none;stroke:#8c959f;stroke-width:1.5;stroke-dasharray:4 2}\
.curve{fill:none;stroke:#0969da;stroke-width:2}.span{stroke:#8c959f;stroke-width:4}.span.ours{stroke:#0969da}\
.max{fill:none;stroke:#8c959f;stroke-width:1.5}.max.ours{stroke:#0969da}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.note{fill:#9198a1}.grid{stroke:#3d444d}.peer{fill:#9198a1}.ours{fill:#4493f8}\
.limit{stroke:#9198a1}.curve{stroke:#4493f8}.span{stroke:#9198a1}.span.ours{stroke:#4493f8}.max{stroke:#9198a1}.max.ours{stroke:#4493f8}}";

/// How a row is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Ours,
    Peer,
    Limit,
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Look::Ours => "ours",
            Look::Peer => "peer",
            Look::Limit => "limit",
        }
    }
}

pub struct Row {
    pub label: String,
    pub look: Look,
    /// Bars and dots show the first; spans extend to the second, with a ring at the third.
    pub values: Vec<f64>,
    pub text: String,
}

/// Maps values to positions, linear from 0 or logarithmic.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    fn linear(most: f64, from: f64, to: f64) -> Scale {
        Scale { low: 0.0, high: most.max(f64::MIN_POSITIVE), from, to, log: false }
    }
    /// Whole decades around the values.
    fn log(values: &[f64], from: f64, to: f64) -> Scale {
        let least = values.iter().copied().filter(|v| *v > 0.0).fold(f64::MAX, f64::min);
        let most = values.iter().copied().fold(least, f64::max);
        let (low, high) = (least.log10().floor(), most.log10().ceil());
        Scale { low, high: high.max(low + 1.0), from, to, log: true }
    }
    fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.max(1e-12).log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            return (self.low as i32..=self.high as i32).map(|e| 10f64.powi(e)).collect();
        }
        let rough = self.high / 4.0;
        let base = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * base).into_iter().find(|s| *s >= rough).unwrap_or(base);
        (0..).map(|n| f64::from(n) * step).take_while(|v| *v <= self.high * 1.001).collect()
    }
}

/// 1,234,567 as 1.2 M, 0.25 as 0.25.
pub fn short(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 999_500.0 => (v / 1e6, " M"),
        v if v >= 10_000.0 => (v / 1e3, " k"),
        v => (v, ""),
    };
    let digits = match value {
        v if v >= 99.95 || v == v.trunc() => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.0995 => 2,
        v if v >= 0.00995 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn open(title: &str, note: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <style>{STYLE}</style>\n<text class=\"title\" x=\"8\" y=\"20\">{}</text>\n<text class=\"note\" x=\"8\" y=\"38\">{}</text>\n",
        escape(title),
        escape(note)
    )
}

fn grid(out: &mut String, scale: &Scale, bottom: f64) {
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let _ =
            writeln!(out, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>");
        let _ = writeln!(
            out,
            "<text class=\"note\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 15.0,
            short(tick)
        );
    }
}

fn label(out: &mut String, text: &str, y: f64) {
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 8.0,
        y + ROW / 2.0 + 1.0,
        escape(text)
    );
}

/// A bar for each row, from 0, with its text behind it. Limits are dashed.
pub fn bars(title: &str, note: &str, rows: &[Row]) -> String {
    let bottom = TOP + rows.len() as f64 * ROW;
    let most = rows.iter().filter_map(|r| r.values.first().copied()).fold(0.0, f64::max);
    let scale = Scale::linear(most, LEFT, WIDTH - RIGHT);
    let mut out = open(title, note, bottom + 24.0);
    grid(&mut out, &scale, bottom);
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + at as f64 * ROW;
        label(&mut out, &row.label, y);
        let end = row.values.first().map_or(LEFT, |value| scale.at(*value));
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\"/>",
            row.look.class(),
            y + 4.0,
            (end - LEFT).max(1.0),
            ROW - 10.0
        );
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            end + 6.0,
            y + ROW / 2.0 + 3.0,
            escape(&row.text)
        );
    }
    out + "</svg>\n"
}

/// For each row a dot on a logarithmic scale (where the length of a bar would mean nothing); with more values, a span
/// and a ring.
pub fn dots(title: &str, note: &str, rows: &[Row]) -> String {
    let bottom = TOP + rows.len() as f64 * ROW;
    let values: Vec<f64> = rows.iter().flat_map(|r| r.values.iter().copied()).collect();
    let scale = Scale::log(&values, LEFT, WIDTH - RIGHT);
    let mut out = open(title, note, bottom + 24.0);
    grid(&mut out, &scale, bottom);
    for (at, row) in rows.iter().enumerate() {
        let (y, class) = (TOP + at as f64 * ROW + ROW / 2.0 - 2.0, row.look.class());
        label(&mut out, &row.label, y - ROW / 2.0 + 2.0);
        let places: Vec<f64> = row.values.iter().map(|value| scale.at(*value)).collect();
        if let [low, high, most] = places[..] {
            let _ = writeln!(
                out,
                "<line class=\"span {class}\" x1=\"{low:.1}\" y1=\"{y:.1}\" x2=\"{high:.1}\" y2=\"{y:.1}\"/>\
                 <circle class=\"max {class}\" style=\"fill:none\" cx=\"{most:.1}\" cy=\"{y:.1}\" r=\"4\"/>"
            );
        }
        let (first, last) = (places.first().unwrap_or(&LEFT), places.last().unwrap_or(&LEFT));
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{first:.1}\" cy=\"{y:.1}\" r=\"5\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            last + 10.0,
            y + 5.0,
            escape(&row.text)
        );
    }
    out + "</svg>\n"
}

/// The content of one panel of curves.
pub struct Panel {
    pub title: String,
    pub points: Vec<(f64, f64)>,
}

/// Panels side by side, each with a logarithmic x axis and a y axis from 0; each point is labelled with its value.
pub fn curves(title: &str, note: &str, panels: &[Panel]) -> String {
    let (height, bottom, gap) = (260.0, 216.0, 24.0);
    let width = (WIDTH - gap) / panels.len().max(1) as f64 - gap;
    let mut out = open(title, note, height);
    for (at, panel) in panels.iter().enumerate() {
        let left = gap + at as f64 * (width + gap) + 6.0;
        let xs: Vec<f64> = panel.points.iter().map(|p| p.0).collect();
        let most = panel.points.iter().map(|p| p.1).fold(0.0, f64::max);
        let mut x = Scale::log(&xs, left + 12.0, left + width - 24.0);
        // From the first point to the last: the decades around them would be empty.
        if let (Some(first), Some(last)) = (xs.first(), xs.last()) {
            (x.low, x.high) = (first.log10(), last.log10().max(first.log10() + 0.1));
        }
        let y = Scale::linear(most * 1.15, bottom, TOP + 26.0);
        let _ = writeln!(
            out,
            "<text class=\"note\" x=\"{left:.1}\" y=\"{}\">{}</text>",
            TOP + 14.0,
            escape(&panel.title)
        );
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{bottom}\" x2=\"{:.1}\" y2=\"{bottom}\"/>",
            left + width
        );
        let path: Vec<String> =
            panel.points.iter().map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1))).collect();
        let _ = writeln!(out, "<polyline class=\"curve\" points=\"{}\"/>", path.join(" "));
        for (px, py) in &panel.points {
            let (cx, cy) = (x.at(*px), y.at(*py));
            let _ = writeln!(
                out,
                "<circle class=\"ours\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\"/>\
                 <text x=\"{cx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
                 <text class=\"note\" x=\"{cx:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                cy - 9.0,
                short(*py),
                bottom + 16.0,
                short(*px)
            );
        }
    }
    out + "</svg>\n"
}
