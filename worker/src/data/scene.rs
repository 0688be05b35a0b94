//! What a drawn scene holds: one to four shapes that never overlap and whose
//! region of the image is never in doubt, so that each question has one answer.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use sha2::{Digest, Sha256};

/// The outline of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A filled disc.
    Circle,
    /// An upright square.
    Square,
    /// An equilateral triangle, point up.
    Triangle,
    /// A five-pointed star, point up.
    Star,
    /// An upright cross with equal arms.
    Cross,
    /// A disc with a hole.
    Ring,
}

/// The fill of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Cyan,
    Blue,
    Purple,
    Pink,
}

/// The size class of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Large,
}

/// How the shapes were placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One shape a cell of a jittered 3 × 3 grid.
    Grid,
    /// Anywhere; two shapes may share a third of the image.
    Free,
}

/// Which half of all possible scenes a scene belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Scenes that training may see.
    Train,
    /// Scenes that training never sees, whatever the seed.
    HeldOut,
}

/// One shape. Positions and radius are fractions of the image's side.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Outline.
    pub kind: Kind,
    /// Fill.
    pub colour: Colour,
    /// Size class; `radius` lies in its range.
    pub size: Size,
    /// Centre, from the left edge.
    pub x: f32,
    /// Centre, from the top edge.
    pub y: f32,
    /// Radius of the circle around the shape.
    pub radius: f32,
    /// Rotation in radians, small.
    pub tilt: f32,
}

/// The shapes of one image, in reading order (rows of thirds, left to right).
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// One to four shapes.
    pub shapes: Vec<Shape>,
    /// How they were placed.
    pub layout: Layout,
}

impl Kind {
    /// Every kind, in label order.
    pub const ALL: [Self; 6] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Star,
        Self::Cross,
        Self::Ring,
    ];
}

impl Colour {
    /// Every colour, in label order.
    pub const ALL: [Self; 8] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Cyan,
        Self::Blue,
        Self::Purple,
        Self::Pink,
    ];
}

impl Size {
    /// Both sizes, in label order.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    fn radius(self, rng: &mut StdRng) -> f32 {
        match self {
            Self::Small => rng.random_range(0.068..0.085),
            Self::Large => rng.random_range(0.118..0.145),
        }
    }
}

/// How near a centre may come to the border between two thirds of the image.
const BORDER: f32 = 0.04;
/// Two shapes in one row differ at least this much in x, so that "left to right" is plain.
const ROW_GAP: f32 = 0.08;

impl Shape {
    /// Column (0 left … 2 right) and row (0 top … 2 bottom) of the third that holds the centre.
    pub fn region(&self) -> (usize, usize) {
        let third = |v: f32| ((v * 3.0) as usize).min(2);
        (third(self.x), third(self.y))
    }
}

impl Scene {
    /// Draws scenes until one belongs to `split`.
    pub fn sample(rng: &mut StdRng, layout: Layout, split: Split) -> Self {
        loop {
            let scene = Self::any(rng, layout);
            if scene.split() == split {
                return scene;
            }
        }
    }

    /// Which split this scene belongs to: decided by what it shows alone, so that no
    /// seed can put one scene on both sides.
    pub fn split(&self) -> Split {
        let mut key: Vec<_> = (self.shapes.iter())
            .map(|s| (s.kind, s.colour, s.size, s.region()))
            .collect();
        key.sort();
        let digest = Sha256::digest(format!("{key:?}"));
        match digest[0] % 16 {
            0 => Split::HeldOut,
            _ => Split::Train,
        }
    }

    fn any(rng: &mut StdRng, layout: Layout) -> Self {
        let count = *[1, 2, 2, 3, 3, 3, 4, 4].choose(rng).unwrap_or(&3);
        let mut cells: Vec<usize> = (0..9).collect();
        cells.shuffle(rng);
        let mut shapes: Vec<Shape> = Vec::with_capacity(count);
        while shapes.len() < count {
            let size = *Size::ALL.choose(rng).unwrap_or(&Size::Large);
            let radius = size.radius(rng);
            let (x, y) = match layout {
                Layout::Grid => jittered(cells[shapes.len()], radius, rng),
                Layout::Free => anywhere(radius, rng),
            };
            let shape = Shape {
                kind: *Kind::ALL.choose(rng).unwrap_or(&Kind::Circle),
                colour: *Colour::ALL.choose(rng).unwrap_or(&Colour::Red),
                size,
                x,
                y,
                radius,
                tilt: rng.random_range(-0.15..0.15),
            };
            if shapes.iter().all(|other| fits(&shape, other)) {
                shapes.push(shape);
            }
        }
        shapes.sort_by(|a, b| (a.region().1.cmp(&b.region().1)).then(a.x.total_cmp(&b.x)));
        Self { shapes, layout }
    }
}

fn jittered(cell: usize, radius: f32, rng: &mut StdRng) -> (f32, f32) {
    let room = (1.0 / 6.0 - radius).max(0.01);
    let mut near = |third: usize| (third as f32 + 0.5) / 3.0 + rng.random_range(-room..room);
    (near(cell % 3), near(cell / 3))
}

fn anywhere(radius: f32, rng: &mut StdRng) -> (f32, f32) {
    let mut one = || loop {
        let v: f32 = rng.random_range(radius + 0.01..0.99 - radius);
        if [1.0 / 3.0, 2.0 / 3.0]
            .iter()
            .all(|border| (v - border).abs() > BORDER)
        {
            return v;
        }
    };
    (one(), one())
}

fn fits(new: &Shape, other: &Shape) -> bool {
    let apart = (new.x - other.x).hypot(new.y - other.y) > new.radius + other.radius + 0.015;
    apart && (new.region().1 != other.region().1 || (new.x - other.x).abs() > ROW_GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn no_shape_overlaps_another_or_leaves_the_image() {
        let mut rng = StdRng::seed_from_u64(1);
        for layout in [Layout::Grid, Layout::Free] {
            for _ in 0..500 {
                let scene = Scene::sample(&mut rng, layout, Split::Train);
                assert!((1..=4).contains(&scene.shapes.len()));
                for (i, a) in scene.shapes.iter().enumerate() {
                    assert!(a.x > a.radius && a.x < 1.0 - a.radius, "{a:?}");
                    assert!(a.y > a.radius && a.y < 1.0 - a.radius, "{a:?}");
                    for b in &scene.shapes[..i] {
                        assert!((a.x - b.x).hypot(a.y - b.y) > a.radius + b.radius);
                    }
                }
            }
        }
    }

    #[test]
    fn a_scene_keeps_its_split_whatever_the_order_of_its_shapes() {
        let mut rng = StdRng::seed_from_u64(2);
        for split in [Split::Train, Split::HeldOut] {
            let mut scene = Scene::sample(&mut rng, Layout::Free, split);
            scene.shapes.reverse();
            assert_eq!(scene.split(), split);
        }
    }
}
