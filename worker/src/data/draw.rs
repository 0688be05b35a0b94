//! Draws a scene at any size, smoothed by supersampling so that a scene drawn
//! large and shrunk by a server looks like the same scene drawn small.

use std::f32::consts::{PI, TAU};

use image::{Rgb, RgbImage};
use rand::Rng;
use rand::rngs::StdRng;

use super::scene::{Colour, Kind, Scene, Shape};

/// Samples a pixel side; 3 gives ten grey steps on an edge.
const SAMPLES: u32 = 3;

type Rgb32 = [f32; 3];

/// Draws `scene` as a square of `side` pixels on a muted background taken from `rng`.
pub fn render(scene: &Scene, side: u32, rng: &mut StdRng) -> RgbImage {
    let background = Background::sample(rng);
    let fills: Vec<Rgb32> = scene.shapes.iter().map(|s| fill(s.colour, rng)).collect();
    let noise = rng.random_range(0.0..0.05f32);
    let mut image = RgbImage::new(side, side);
    for (px, py, pixel) in image.enumerate_pixels_mut() {
        let mut colour = background.at(px as f32 / side as f32, py as f32 / side as f32);
        for (shape, fill) in scene.shapes.iter().zip(&fills) {
            let cover = coverage(shape, px, py, side);
            for (c, f) in colour.iter_mut().zip(fill) {
                *c += (f - *c) * cover;
            }
        }
        let grain = rng.random_range(-noise..=noise);
        *pixel = Rgb(colour.map(|c| ((c + grain).clamp(0.0, 1.0) * 255.0).round() as u8));
    }
    image
}

/// The share of a pixel that a shape covers, 0 to 1.
pub(super) fn coverage(shape: &Shape, px: u32, py: u32, side: u32) -> f32 {
    let pixel = 1.0 / side as f32;
    let reach = shape.radius + pixel;
    let (cx, cy) = ((px as f32 + 0.5) * pixel, (py as f32 + 0.5) * pixel);
    if (cx - shape.x).abs() > reach || (cy - shape.y).abs() > reach {
        return 0.0;
    }
    let (sin, cos) = shape.tilt.sin_cos();
    let mut hits = 0;
    for i in 0..SAMPLES * SAMPLES {
        let at = |p: u32, step: u32| (p as f32 + (step as f32 + 0.5) / SAMPLES as f32) * pixel;
        let dx = (at(px, i % SAMPLES) - shape.x) / shape.radius;
        let dy = (at(py, i / SAMPLES) - shape.y) / shape.radius;
        let (x, y) = (dx * cos + dy * sin, dy * cos - dx * sin);
        hits += u32::from(inside(shape.kind, x, y));
    }
    hits as f32 / (SAMPLES * SAMPLES) as f32
}

/// Whether a point, in units of the radius from the centre (y down), lies in the outline.
fn inside(kind: Kind, x: f32, y: f32) -> bool {
    let r2 = x * x + y * y;
    match kind {
        Kind::Circle => r2 <= 0.9 * 0.9,
        Kind::Ring => (0.5 * 0.5..=0.95 * 0.95).contains(&r2),
        Kind::Square => x.abs() <= 0.76 && y.abs() <= 0.76,
        Kind::Cross => x.abs().min(y.abs()) <= 0.3 && x.abs().max(y.abs()) <= 0.95,
        Kind::Triangle => y <= 0.55 && y >= -0.95 + 1.732 * x.abs(),
        Kind::Star => {
            // Distance along the spoke between a tip (1) and the notch (0.42) beside it.
            let turn = (x.atan2(-y) + TAU) % (TAU / 5.0);
            let off = turn.min(TAU / 5.0 - turn);
            let (tip, notch) = (1.0f32, 0.42f32);
            let (nx, ny) = (notch * (PI / 5.0).cos(), notch * (PI / 5.0).sin());
            let r = r2.sqrt();
            let (sx, sy) = (r * off.cos(), r * off.sin());
            // Left of the line from the tip to the notch.
            (sx - tip) * ny - sy * (nx - tip) <= 0.0
        }
    }
}

fn fill(colour: Colour, rng: &mut StdRng) -> Rgb32 {
    let base: Rgb32 = match colour {
        Colour::Red => [0.86, 0.10, 0.10],
        Colour::Orange => [0.98, 0.53, 0.06],
        Colour::Yellow => [0.97, 0.90, 0.12],
        Colour::Green => [0.12, 0.63, 0.20],
        Colour::Cyan => [0.12, 0.82, 0.87],
        Colour::Blue => [0.12, 0.24, 0.85],
        Colour::Purple => [0.50, 0.14, 0.66],
        Colour::Pink => [0.98, 0.50, 0.76],
    };
    base.map(|c| c + rng.random_range(-0.035..0.035f32))
}

/// A muted plain, gradient or stripe, told from every fill by its low saturation.
struct Background {
    from: Rgb32,
    to: Rgb32,
    angle: f32,
    stripes: Option<f32>,
}

impl Background {
    fn sample(rng: &mut StdRng) -> Self {
        let grey: f32 = rng.random_range(0.1..0.95);
        let mut muted =
            |grey: f32| [0; 3].map(|_| (grey + rng.random_range(-0.05..0.05f32)).clamp(0.0, 1.0));
        let (from, to) = (muted(grey), muted((grey + 0.12).min(1.0)));
        Self {
            from,
            to: if rng.random_bool(0.4) { from } else { to },
            angle: rng.random_range(0.0..TAU),
            stripes: rng.random_bool(0.25).then(|| rng.random_range(3.0..9.0)),
        }
    }

    fn at(&self, x: f32, y: f32) -> Rgb32 {
        let along = (x - 0.5) * self.angle.cos() + (y - 0.5) * self.angle.sin() + 0.5;
        let mix = match self.stripes {
            Some(count) => (along * count * TAU).sin() * 0.5 + 0.5,
            None => along.clamp(0.0, 1.0),
        };
        [0, 1, 2].map(|i| self.from[i] + (self.to[i] - self.from[i]) * mix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(kind: Kind) -> f32 {
        let n = 400;
        let hits = (0..n * n)
            .filter(|i| {
                let at = |v: i32| (v as f32 + 0.5) / n as f32 * 2.0 - 1.0;
                inside(kind, at(i % n), at(i / n))
            })
            .count();
        4.0 * hits as f32 / (n * n) as f32
    }

    #[test]
    fn outlines_have_the_areas_of_their_figures() {
        assert!((area(Kind::Circle) - PI * 0.81).abs() < 0.02);
        assert!((area(Kind::Square) - 1.52 * 1.52).abs() < 0.02);
        assert!((area(Kind::Ring) - PI * (0.9025 - 0.25)).abs() < 0.02);
        // Ten triangles between the centre, a tip (1) and a notch (0.42).
        let star = 10.0 * 0.5 * 0.42 * (PI / 5.0).sin();
        assert!(
            (area(Kind::Star) - star).abs() < 0.02,
            "{}",
            area(Kind::Star)
        );
    }
}
