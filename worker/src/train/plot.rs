//! The loss and the held-out accuracy of a run as one SVG.

use std::fmt::Write;

use super::journal::Event;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;

/// Draws loss (left axis, logarithmic) and accuracy (right axis, percent) over steps.
pub fn loss(events: &[Event]) -> String {
    let losses: Vec<(f64, f64)> = (events.iter())
        .filter_map(|event| match event {
            Event::Step(e) if e.loss > 0.0 => Some((e.total as f64, e.loss)),
            _ => None,
        })
        .collect();
    let accuracies: Vec<(f64, f64)> = (events.iter())
        .filter_map(|event| match event {
            Event::Accuracy {
                total, accuracy, ..
            } => Some((*total as f64, accuracy.all.share())),
            Event::Step(_) => None,
        })
        .collect();
    let last = losses
        .iter()
        .chain(&accuracies)
        .fold(1.0f64, |m, p| m.max(p.0));
    let low = losses
        .iter()
        .fold(1.0f64, |m, p| m.min(p.1))
        .log10()
        .floor();
    let high = losses
        .iter()
        .fold(1.0f64, |m, p| m.max(p.1))
        .log10()
        .ceil()
        .max(low + 1.0);
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * step / last;
    let span = HEIGHT - TOP - BOTTOM;
    let y_loss = |loss: f64| TOP + span * (high - loss.log10()) / (high - low);
    let y_share = |share: f64| TOP + span * (1.0 - share);

    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
"##
    );
    let mut text = |x: f64, y: f64, anchor: &str, colour: &str, words: &str| {
        let _ = writeln!(
            svg,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{words}</text>"#
        );
    };
    let decades = (high - low) as i32;
    for i in 0..=decades {
        let value = 10f64.powf(low + f64::from(i));
        text(
            LEFT - 8.0,
            y_loss(value) + 4.0,
            "end",
            "#1f5fa8",
            &format!("{value}"),
        );
    }
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        text(
            WIDTH - RIGHT + 8.0,
            y_share(share) + 4.0,
            "start",
            "#b5531c",
            &format!("{:.0} %", share * 100.0),
        );
        text(
            x(last * share),
            HEIGHT - BOTTOM + 18.0,
            "middle",
            "#444",
            &format!("{:.0}", last * share),
        );
    }
    text(
        LEFT,
        TOP - 12.0,
        "start",
        "#1f5fa8",
        "loss of a learned token",
    );
    text(
        WIDTH - RIGHT,
        TOP - 12.0,
        "end",
        "#b5531c",
        "held-out answers exactly right",
    );
    text(WIDTH / 2.0, HEIGHT - 8.0, "middle", "#444", "step");
    let mut line = |points: &[(f64, f64)], colour: &str| {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#
        );
    };
    let frame = [
        (LEFT, TOP),
        (LEFT, HEIGHT - BOTTOM),
        (WIDTH - RIGHT, HEIGHT - BOTTOM),
        (WIDTH - RIGHT, TOP),
    ];
    line(&frame, "#999");
    line(
        &losses
            .iter()
            .map(|p| (x(p.0), y_loss(p.1)))
            .collect::<Vec<_>>(),
        "#1f5fa8",
    );
    line(
        &accuracies
            .iter()
            .map(|p| (x(p.0), y_share(p.1)))
            .collect::<Vec<_>>(),
        "#b5531c",
    );
    svg.push_str("</svg>\n");
    svg
}
