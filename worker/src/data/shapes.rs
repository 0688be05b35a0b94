//! `make-data shapes`: a LLaVA data set of drawn scenes. Training conversations,
//! one-question held-out records, per-patch labels for the vision tower, and the
//! tokenizer that fits them all come from one seed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::draw::{coverage, render};
use super::question::{Question, QuestionKind};
use super::scene::{Layout, Scene, Split};
use super::tokenizer::{self, TokenizerError};

/// What to make.
#[derive(Debug, Clone)]
pub struct ShapesPlan {
    /// Training images.
    pub images: usize,
    /// Held-out images.
    pub held_out: usize,
    /// Conversations about each training image.
    pub conversations: usize,
    /// Questions in a training conversation.
    pub turns: usize,
    /// Kinds that training asks so many times as often as usual.
    pub more: Vec<(QuestionKind, u32)>,
    /// Share of scenes whose shapes stand off the grid, 0 to 1.
    pub free: f64,
    /// Side of every image in pixels.
    pub side: u32,
    /// Side of a vision patch in pixels, for the per-patch labels.
    pub patch: u32,
    /// Entries of the tokenizer; none is written for 0.
    pub vocabulary: usize,
    /// Where every random choice starts.
    pub seed: u64,
}

/// Why the data set could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShapesError {
    /// A file or folder could not be written.
    #[error("write {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An image could not be encoded.
    #[error("encode {path}")]
    Encode {
        /// Where.
        path: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// The tokenizer could not be trained.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One patch's labels cover at least this share of it, or it counts as empty.
const PATCH_COVER: f32 = 0.08;

/// Writes `train.json`, `heldout.json`, `tower.jsonl`, `images/` and the tokenizer under `out`.
///
/// # Errors
/// [`ShapesError`] names the file that could not be written.
pub fn make(plan: &ShapesPlan, out: &Path) -> Result<(), ShapesError> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| ShapesError::Write { path, source }
    };
    for dir in ["images/train", "images/heldout"] {
        let dir = out.join(dir);
        fs::create_dir_all(&dir).map_err(write(&dir))?;
    }
    let mut train = Records::create(out.join("train.json"))?;
    let mut texts = Vec::new();
    let tower_path = out.join("tower.jsonl");
    let mut tower = BufWriter::new(File::create(&tower_path).map_err(write(&tower_path))?);
    for index in 0..plan.images {
        let mut rng = seeded(plan.seed, Split::Train, index);
        let (scene, image) = draw(plan, Split::Train, index, out, &mut rng)?;
        writeln!(tower, "{}", patch_labels(&scene, &image, plan)).map_err(write(&tower_path))?;
        for part in 0..plan.conversations {
            let questions = conversation(&scene, plan, &mut rng);
            if index < 4000 && part == 0 {
                texts.extend(
                    questions
                        .iter()
                        .flat_map(|q| [q.ask.clone(), q.answer.clone()]),
                );
            }
            train.push(&record(
                &format!("{index:06}-{part}"),
                &image,
                &scene,
                &questions,
            ))?;
        }
    }
    train.finish()?;
    tower.flush().map_err(write(&tower_path))?;

    let mut held_out = Records::create(out.join("heldout.json"))?;
    for index in 0..plan.held_out {
        let mut rng = seeded(plan.seed, Split::HeldOut, index);
        let (scene, image) = draw(plan, Split::HeldOut, index, out, &mut rng)?;
        for (part, kind) in QuestionKind::ALL.into_iter().enumerate() {
            if let Some(question) = kind.ask(&scene, &mut rng) {
                held_out.push(&record(
                    &format!("{index:06}-{part}"),
                    &image,
                    &scene,
                    &[question],
                ))?;
            }
        }
    }
    held_out.finish()?;
    if plan.vocabulary > 0 {
        // The words that frame every conversation are as frequent as the questions.
        let frame = "USER: ASSISTANT: A chat between a curious user and an artificial intelligence \
                     assistant. The assistant gives helpful, detailed, and polite answers to the \
                     user's questions. curious human and to the human's questions.";
        texts.extend(std::iter::repeat_n(frame.to_owned(), texts.len() / 8));
        tokenizer::train(&texts, plan.vocabulary, out)?;
    }
    Ok(())
}

/// Each image has its own stream of random numbers, so that asking for more images
/// never changes the earlier ones.
fn seeded(seed: u64, split: Split, index: usize) -> StdRng {
    let side = u64::from(split == Split::HeldOut);
    StdRng::seed_from_u64((seed << 33) ^ (side << 32) ^ index as u64)
}

fn draw(
    plan: &ShapesPlan,
    split: Split,
    index: usize,
    out: &Path,
    rng: &mut StdRng,
) -> Result<(Scene, String), ShapesError> {
    let layout = if rng.random_bool(plan.free) {
        Layout::Free
    } else {
        Layout::Grid
    };
    let scene = Scene::sample(rng, layout, split);
    let folder = if split == Split::Train {
        "train"
    } else {
        "heldout"
    };
    let name = format!("images/{folder}/{index:06}.png");
    let path = out.join(&name);
    render(&scene, plan.side, rng)
        .save(&path)
        .map_err(|source| ShapesError::Encode { path, source })?;
    Ok((scene, name))
}

fn conversation(scene: &Scene, plan: &ShapesPlan, rng: &mut StdRng) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::with_capacity(plan.turns);
    while questions.len() < plan.turns {
        let question = match QuestionKind::sample(rng, &plan.more) {
            // A scene without a near miss still owes its share of noes.
            QuestionKind::IsThereHard => (QuestionKind::IsThereHard.ask(scene, rng))
                .or_else(|| QuestionKind::IsThereNo.ask(scene, rng)),
            kind => kind.ask(scene, rng),
        };
        questions.extend(question);
    }
    questions
}

fn record(id: &str, image: &str, scene: &Scene, questions: &[Question]) -> Value {
    let turns = questions.iter().enumerate().flat_map(|(i, q)| {
        let ask = if i == 0 {
            format!("<image>\n{}", q.ask)
        } else {
            q.ask.clone()
        };
        [
            json!({"from": "human", "value": ask}),
            json!({"from": "gpt", "value": q.answer}),
        ]
    });
    json!({
        "id": id,
        "image": image,
        "layout": if scene.layout == Layout::Grid { "grid" } else { "free" },
        "kinds": questions.iter().map(|q| q.kind).collect::<Vec<_>>(),
        "conversations": turns.collect::<Vec<_>>(),
    })
}

/// For each patch in reading order: outline, colour, size, third of the image and place in
/// reading order of the shape that covers most of it, counted from 1; 0 is background. The
/// last two tell shapes apart that look alike, so that they can be counted and placed.
fn patch_labels(scene: &Scene, image: &str, plan: &ShapesPlan) -> Value {
    let grid = plan.side / plan.patch;
    let mut labels = [const { Vec::new() }; 5];
    for cell in 0..grid * grid {
        let (left, top) = (cell % grid * plan.patch, cell / grid * plan.patch);
        let pixels = plan.patch * plan.patch;
        let cover = |shape| -> f32 {
            let pixel = |i| {
                coverage(
                    shape,
                    left + i % plan.patch,
                    top + i / plan.patch,
                    plan.side,
                )
            };
            (0..pixels).map(pixel).sum::<f32>() / pixels as f32
        };
        let most = (scene.shapes.iter().enumerate().map(|s| (cover(s.1), s)))
            .filter(|(cover, _)| *cover >= PATCH_COVER)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let of_patch = most.map_or([0; 5], |(_, (order, shape))| {
            let (column, row) = shape.region();
            [
                1 + shape.kind as usize,
                1 + shape.colour as usize,
                1 + shape.size as usize,
                1 + row * 3 + column,
                1 + order,
            ]
        });
        for (all, one) in labels.iter_mut().zip(of_patch) {
            all.push(one);
        }
    }
    json!({"image": image, "labels": labels})
}

/// A JSON array with one record a line: readable by anything that reads LLaVA's data.
struct Records {
    path: PathBuf,
    file: BufWriter<File>,
    empty: bool,
}

impl Records {
    fn create(path: PathBuf) -> Result<Self, ShapesError> {
        match File::create(&path) {
            Ok(file) => Ok(Self {
                path,
                file: BufWriter::new(file),
                empty: true,
            }),
            Err(source) => Err(ShapesError::Write { path, source }),
        }
    }

    fn push(&mut self, record: &Value) -> Result<(), ShapesError> {
        let lead = if self.empty { "[\n" } else { ",\n" };
        self.empty = false;
        write!(self.file, "{lead}{record}").map_err(|source| ShapesError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn finish(mut self) -> Result<(), ShapesError> {
        let end = if self.empty { "[]\n" } else { "\n]\n" };
        (self
            .file
            .write_all(end.as_bytes())
            .and_then(|()| self.file.flush()))
        .map_err(|source| ShapesError::Write {
            path: self.path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn plan(images: usize) -> ShapesPlan {
        ShapesPlan {
            images,
            held_out: 5,
            conversations: 2,
            turns: 4,
            more: Vec::new(),
            free: 0.5,
            side: 96,
            patch: 16,
            vocabulary: 400,
            seed: 7,
        }
    }

    fn records(dir: &Path, name: &str) -> Vec<Value> {
        serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
    }

    #[test]
    fn a_data_set_is_complete_and_its_first_images_do_not_depend_on_how_many_follow() {
        let (few, more) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(&plan(3), few.path()).unwrap();
        make(&plan(6), more.path()).unwrap();
        let (a, b) = (
            records(few.path(), "train.json"),
            records(more.path(), "train.json"),
        );
        assert_eq!((a.len(), b.len()), (6, 12));
        assert_eq!(a, b[..6]);
        for record in &b {
            assert!(more.path().join(record["image"].as_str().unwrap()).exists());
            assert_eq!(record["conversations"].as_array().unwrap().len(), 8);
        }
        let asked: HashSet<_> = records(few.path(), "heldout.json")
            .iter()
            .map(|r| r["kinds"][0].as_str().unwrap().to_owned())
            .collect();
        assert!(asked.len() >= 8, "{asked:?}");
        let tower = fs::read_to_string(few.path().join("tower.jsonl")).unwrap();
        let first: Value = serde_json::from_str(tower.lines().next().unwrap()).unwrap();
        assert_eq!(first["labels"][0].as_array().unwrap().len(), 36);
    }
}
