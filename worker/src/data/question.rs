//! Questions about a scene with their one right answer. "Is there a …" is asked
//! half and half, and half of its noes are near misses: a model that learns only
//! which colours and which outlines are present cannot pass them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::phrase::{list, number, region, sentence, with_article};
use super::scene::{Colour, Kind, Scene, Shape, Size};

/// What a question asks for: the unit in which accuracy is reported.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum QuestionKind {
    /// What is in one place.
    What,
    /// The colour of a shape.
    Colour,
    /// How many.
    Count,
    /// "Is there a …" with the answer yes.
    IsThereYes,
    /// "Is there a …" with the answer no, colour or outline absent.
    IsThereNo,
    /// "Is there a …" with the answer no, though colour and outline are both present.
    IsThereHard,
    /// The place of a shape.
    Where,
    /// The outline of a shape.
    Shape,
    /// The size of a shape.
    Size,
    /// Everything in the image.
    Describe,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it asks for.
    pub kind: QuestionKind,
    /// The user's words.
    pub ask: String,
    /// The one right answer.
    pub answer: String,
}

impl QuestionKind {
    /// Every kind, in report order.
    pub const ALL: [Self; 10] = [
        Self::What,
        Self::Colour,
        Self::Count,
        Self::IsThereYes,
        Self::IsThereNo,
        Self::IsThereHard,
        Self::Where,
        Self::Shape,
        Self::Size,
        Self::Describe,
    ];

    /// How often training asks this kind. Look-ups (the colour of the star) and
    /// counts weigh more because they are learned last; yes and no weigh the same.
    fn weight(self) -> u32 {
        match self {
            Self::What => 10,
            Self::Colour | Self::Shape => 15,
            Self::Count => 15,
            Self::IsThereYes => 12,
            Self::IsThereNo | Self::IsThereHard => 6,
            Self::Where => 11,
            Self::Size => 8,
            Self::Describe => 10,
        }
    }

    /// A kind drawn by training weight; those in `more` come so many times as often.
    pub fn sample(rng: &mut StdRng, more: &[(Self, u32)]) -> Self {
        let times = |kind: Self| more.iter().find(|of| of.0 == kind).map_or(1, |of| of.1);
        let weighted = Self::ALL.choose_weighted(rng, |kind| kind.weight() * times(*kind));
        weighted.copied().unwrap_or(Self::Describe)
    }

    /// A question of this kind about `scene`; `None` where the scene allows none
    /// (two stars: "the star" names neither).
    pub fn ask(self, scene: &Scene, rng: &mut StdRng) -> Option<Question> {
        let pick = |rng: &mut StdRng, forms: &[String]| forms.choose(rng).cloned();
        let (forms, answer) = match self {
            Self::What => what(scene, rng)?,
            Self::Colour => {
                let (shape, name) = named(scene, rng, &[Name::Kind, Name::SizeKind])?;
                let forms = [
                    format!("What color is the {name}?"),
                    format!("What colour is the {name}?"),
                    format!("Which color is the {name}?"),
                ];
                (forms.into(), sentence(shape.colour.word()))
            }
            Self::Shape => {
                let (shape, name) = named(scene, rng, &[Name::Colour, Name::SizeColour])?;
                let forms = [
                    format!("What shape is the {name} one?"),
                    format!("Which shape is {name}?"),
                    format!("What is the {name} shape?"),
                ];
                (forms.into(), sentence(&with_article(shape.kind.word())))
            }
            Self::Size => {
                let (shape, name) = named(scene, rng, &[Name::Kind, Name::ColourKind])?;
                let forms = [
                    format!("What size is the {name}?"),
                    format!("Is the {name} small or large?"),
                    format!("How big is the {name}?"),
                ];
                (forms.into(), sentence(shape.size.word()))
            }
            Self::Where => {
                let (shape, name) = named(scene, rng, &[Name::Kind, Name::ColourKind])?;
                let forms = [
                    format!("Where is the {name}?"),
                    format!("Where in the image is the {name}?"),
                    format!("In which part of the image is the {name}?"),
                ];
                (forms.into(), sentence(&place(shape)))
            }
            Self::Count => count(scene, rng),
            Self::IsThereYes | Self::IsThereNo | Self::IsThereHard => {
                let target = self.target(scene, rng)?;
                let thing = with_article(&target);
                let forms = [
                    format!("Is there {thing}?"),
                    format!("Is there {thing} in the image?"),
                    format!("Do you see {thing}?"),
                    format!("Can you see {thing} in the picture?"),
                ];
                let answer = if self == Self::IsThereYes {
                    "yes"
                } else {
                    "no"
                };
                (forms.into(), sentence(answer))
            }
            Self::Describe => describe(scene),
        };
        Some(Question {
            kind: self,
            ask: pick(rng, &forms)?,
            answer,
        })
    }

    /// What an "is there a …" asks about: present, absent, or a near miss.
    fn target(self, scene: &Scene, rng: &mut StdRng) -> Option<String> {
        let held = |kind, colour| {
            scene
                .shapes
                .iter()
                .any(|s| s.kind == kind && s.colour == colour)
        };
        let kinds = Kind::ALL.map(|k| (k, scene.shapes.iter().any(|s| s.kind == k)));
        let colours = Colour::ALL.map(|c| (c, scene.shapes.iter().any(|s| s.colour == c)));
        let seen_kinds: Vec<Kind> = kinds.iter().filter(|k| k.1).map(|k| k.0).collect();
        let seen_colours: Vec<Colour> = colours.iter().filter(|c| c.1).map(|c| c.0).collect();
        let pair = |kind: Kind, colour: Colour| format!("{} {}", colour.word(), kind.word());
        match self {
            Self::IsThereYes => {
                let shape = scene.shapes.choose(rng)?;
                Some(match rng.random_range(0..8) {
                    0 => shape.kind.word().to_owned(),
                    1 => format!("{} shape", shape.colour.word()),
                    _ => shape.name(),
                })
            }
            Self::IsThereNo => {
                let absent_kinds: Vec<Kind> = kinds.iter().filter(|k| !k.1).map(|k| k.0).collect();
                let absent_colours: Vec<Colour> =
                    colours.iter().filter(|c| !c.1).map(|c| c.0).collect();
                let (kind, colour) = (*absent_kinds.choose(rng)?, *absent_colours.choose(rng)?);
                Some(match rng.random_range(0..8) {
                    0 | 1 => kind.word().to_owned(),
                    2 | 3 => format!("{} shape", colour.word()),
                    4 => pair(kind, colour),
                    // One half is present: the outline in another colour, or the
                    // colour on another outline.
                    n if n % 2 == 0 => pair(kind, *seen_colours.choose(rng)?),
                    _ => pair(*seen_kinds.choose(rng)?, colour),
                })
            }
            _ => {
                // Both halves are present, on different shapes.
                let crossed: Vec<(Kind, Colour)> = (seen_kinds.iter())
                    .flat_map(|&k| seen_colours.iter().map(move |&c| (k, c)))
                    .filter(|&(k, c)| !held(k, c))
                    .collect();
                crossed.choose(rng).map(|&(k, c)| pair(k, c))
            }
        }
    }
}

type Turn = (Vec<String>, String);

/// How a shape may be named so that only one shape fits.
#[derive(Clone, Copy)]
enum Name {
    Kind,
    Colour,
    SizeKind,
    SizeColour,
    ColourKind,
}

impl Name {
    fn of(self, shape: &Shape) -> String {
        match self {
            Self::Kind => shape.kind.word().to_owned(),
            Self::Colour => shape.colour.word().to_owned(),
            Self::SizeKind => format!("{} {}", shape.size.word(), shape.kind.word()),
            Self::SizeColour => format!("{} {}", shape.size.word(), shape.colour.word()),
            Self::ColourKind => shape.name(),
        }
    }
}

/// A shape and a name that fits it alone; the shortest kind of name wins.
fn named<'a>(scene: &'a Scene, rng: &mut StdRng, ways: &[Name]) -> Option<(&'a Shape, String)> {
    let mut options = Vec::new();
    for shape in &scene.shapes {
        let way = (ways.iter()).find(|way| {
            scene
                .shapes
                .iter()
                .filter(|s| way.of(s) == way.of(shape))
                .count()
                == 1
        });
        if let Some(way) = way {
            options.push((shape, way.of(shape)));
        }
    }
    options.choose(rng).cloned()
}

fn place(shape: &Shape) -> String {
    format!("in the {}", region(shape.region()))
}

fn what(scene: &Scene, rng: &mut StdRng) -> Option<Turn> {
    let at = |cell: (usize, usize)| -> Vec<&Shape> {
        scene.shapes.iter().filter(|s| s.region() == cell).collect()
    };
    let cells: Vec<(usize, usize)> = (0..9).map(|i| (i % 3, i / 3)).collect();
    let wanted = if rng.random_bool(0.2) { 0 } else { 1 };
    let cells: Vec<_> = cells
        .into_iter()
        .filter(|c| at(*c).len() == wanted)
        .collect();
    let cell = *cells.choose(rng)?;
    let answer = match at(cell).first() {
        Some(shape) => with_article(&shape.name()),
        None => "nothing".to_owned(),
    };
    let name = region(cell);
    let forms = [
        format!("What is in the {name}?"),
        format!("What do you see in the {name}?"),
        format!("Which shape is in the {name}?"),
    ];
    Some((forms.into(), sentence(&answer)))
}

fn count(scene: &Scene, rng: &mut StdRng) -> Turn {
    // Outlines are asked most: their plurals are words that no other question has.
    let (n, things) = match rng.random_range(0..6) {
        0 => (scene.shapes.len(), "shapes".to_owned()),
        1 => {
            let (n, size) = numbered(scene, &Size::ALL, |shape| shape.size, rng);
            (n, format!("{} shapes", size.word()))
        }
        2 => {
            let (n, colour) = numbered(scene, &Colour::ALL, |shape| shape.colour, rng);
            (n, format!("{} shapes", colour.word()))
        }
        _ => {
            let (n, kind) = numbered(scene, &Kind::ALL, |shape| shape.kind, rng);
            (n, kind.plural().to_owned())
        }
    };
    let forms = [
        format!("How many {things} are there?"),
        format!("How many {things} are in the image?"),
        format!("How many {things} do you see?"),
    ];
    (forms.into(), sentence(number(n)))
}

/// One of the values that an attribute can have, and how many shapes have it.
/// Every number that some value has here is as likely as the others: drawn by
/// value, most answers would be "One", and that is what would be learned.
fn numbered<T: Copy + PartialEq>(
    scene: &Scene,
    values: &[T],
    of: impl Fn(&Shape) -> T,
    rng: &mut StdRng,
) -> (usize, T) {
    let number = |value: T| scene.shapes.iter().filter(|s| of(s) == value).count();
    let mut numbers: Vec<usize> = values.iter().map(|value| number(*value)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let n = numbers[rng.random_range(0..numbers.len())];
    let with: Vec<T> = (values.iter().copied())
        .filter(|value| number(*value) == n)
        .collect();
    (n, with[rng.random_range(0..with.len())])
}

fn describe(scene: &Scene) -> Turn {
    let items: Vec<String> = (scene.shapes.iter())
        .map(|s| format!("{} {}", with_article(&s.full_name()), place(s)))
        .collect();
    let forms = [
        "Describe the image.",
        "What is in the image?",
        "What do you see?",
        "What is in this picture?",
        "Describe this picture.",
        "What is shown here?",
    ];
    (
        forms.map(str::to_owned).into(),
        sentence(&format!("there is {}", list(&items))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::scene::{Layout, Split};
    use rand::SeedableRng;

    fn questions(kind: QuestionKind) -> Vec<(Scene, Question)> {
        let mut rng = StdRng::seed_from_u64(3);
        let mut asked = Vec::new();
        while asked.len() < 300 {
            let scene = Scene::sample(&mut rng, Layout::Free, Split::Train);
            if let Some(question) = kind.ask(&scene, &mut rng) {
                asked.push((scene, question));
            }
        }
        asked
    }

    #[test]
    fn a_no_is_never_said_of_a_shape_that_is_there() {
        for kind in [QuestionKind::IsThereNo, QuestionKind::IsThereHard] {
            for (scene, question) in questions(kind) {
                assert_eq!(question.answer, "No.");
                for shape in &scene.shapes {
                    assert!(
                        !question.ask.contains(&shape.name()),
                        "{question:?} of {scene:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_near_miss_names_a_colour_and_an_outline_that_are_both_present() {
        for (scene, question) in questions(QuestionKind::IsThereHard) {
            let any = |word: fn(&Shape) -> &'static str| {
                scene.shapes.iter().any(|s| question.ask.contains(word(s)))
            };
            assert!(
                any(|s| s.kind.word()) && any(|s| s.colour.word()),
                "{question:?}"
            );
        }
    }

    #[test]
    fn yes_and_no_weigh_the_same() {
        let (no, hard) = (QuestionKind::IsThereNo, QuestionKind::IsThereHard);
        assert_eq!(
            QuestionKind::IsThereYes.weight(),
            no.weight() + hard.weight()
        );
    }

    #[test]
    fn no_number_is_the_answer_of_most_counts_of_outlines() {
        let mut answers = [0_usize; 5];
        let mut asked = 0;
        for (scene, question) in questions(QuestionKind::Count) {
            let of = |kind: &Kind| question.ask.contains(&format!("many {} ", kind.plural()));
            if let Some(kind) = Kind::ALL.into_iter().find(of) {
                let n = scene.shapes.iter().filter(|s| s.kind == kind).count();
                assert_eq!(question.answer, sentence(number(n)), "{question:?}");
                answers[n] += 1;
                asked += 1;
            }
        }
        assert!(asked > 0);
        for (n, times) in answers.into_iter().enumerate() {
            assert!(times * 5 < asked * 3, "{times} of {asked} are {n}");
        }
    }

    #[test]
    fn a_named_shape_is_the_only_one_of_that_name() {
        for (scene, question) in questions(QuestionKind::Colour) {
            let colours: Vec<_> = (scene.shapes.iter())
                .filter(|s| {
                    question.ask.contains(s.kind.word())
                        && (!question.ask.contains("small") || s.size == Size::Small)
                        && (!question.ask.contains("large") || s.size == Size::Large)
                })
                .map(|s| sentence(s.colour.word()))
                .collect();
            assert_eq!(colours, [question.answer]);
        }
    }
}
