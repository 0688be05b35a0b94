//! Accuracy on held-out conversations: an answer counts when greedy decoding would
//! give it whole, end token included. One pass tells, because greedy decoding follows the
//! right answer exactly as long as each of its tokens is the most likely one.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, DType, Result};
use serde::{Deserialize, Serialize};

use super::corpus::Corpus;
use super::net::Net;
use super::pass::Scene;

/// Right answers among those asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Whole answers exactly right.
    pub right: usize,
    /// Answers asked for.
    pub asked: usize,
}

impl Score {
    /// The share that is right, 0 to 1.
    pub fn share(self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }
}

/// Accuracy over a held-out file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Over all answers.
    pub all: Score,
    /// By what the question is about, and by the record's layout.
    pub kinds: BTreeMap<String, Score>,
}

impl Accuracy {
    fn count(&mut self, names: &[Option<&str>], right: bool) {
        let named = names.iter().flatten().map(|name| (*name).to_owned());
        for name in named {
            let score = self.kinds.entry(name).or_default();
            score.asked += 1;
            score.right += usize::from(right);
        }
        self.all.asked += 1;
        self.all.right += usize::from(right);
    }

    fn add(&mut self, other: Self) {
        for (name, score) in other.kinds.into_iter().chain([(String::new(), other.all)]) {
            let mine = if name.is_empty() {
                &mut self.all
            } else {
                self.kinds.entry(name).or_default()
            };
            mine.asked += score.asked;
            mine.right += score.right;
        }
    }
}

impl Accuracy {
    /// A Markdown table, one row a kind.
    pub fn table(&self) -> String {
        let row = |name: &str, score: Score| {
            format!(
                "| {name} | {} | {:.1} % |\n",
                score.asked,
                100.0 * score.share()
            )
        };
        let mut table = "| question | asked | exactly right |\n|---|---:|---:|\n".to_owned();
        for (name, score) in &self.kinds {
            table += &row(name, *score);
        }
        table + &row("**all**", self.all)
    }
}

/// Records of one pass.
const PASS: usize = 16;

/// The accuracy of `scene`'s model on the records `indices` of `corpus`.
///
/// # Errors
/// When the device fails.
pub fn accuracy(scene: &Scene<'_>, corpus: &Corpus, indices: &[usize]) -> Result<Accuracy> {
    let none = BTreeSet::new();
    let net = Net::new(
        scene.config,
        scene.params,
        &none,
        scene.rope,
        scene.lora,
        scene.dtype,
    )?;
    let passes: Vec<&[usize]> = indices.chunks(PASS).collect();
    let work = |thread: usize| -> Result<Accuracy> {
        let mut total = Accuracy::default();
        for indices in passes.iter().skip(thread).step_by(scene.threads) {
            total.add(pass(&net, corpus, indices, scene)?);
        }
        Ok(total)
    };
    let parts = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..scene.threads)
            .map(|t| scope.spawn(move || work(t)))
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    let mut total = Accuracy::default();
    for part in parts {
        total.add(part?);
    }
    Ok(total)
}

fn pass(net: &Net<'_>, corpus: &Corpus, indices: &[usize], scene: &Scene<'_>) -> Result<Accuracy> {
    let mut accuracy = Accuracy::default();
    let loaded = corpus.load(indices, 0, scene.device)?;
    let Some(batch) = loaded.batch else {
        return Ok(accuracy);
    };
    let best = net
        .logits(&batch)?
        .to_dtype(DType::F32)?
        .argmax(D::Minus1)?
        .to_vec1::<u32>()?;
    let mut right = BTreeMap::new();
    for ((best, wanted), answer) in best.iter().zip(&*batch.targets.entries).zip(&batch.answers) {
        *right.entry(*answer).or_insert(true) &= best == wanted;
    }
    for ((sample, answer), right) in right {
        let record = &loaded.records[sample];
        let kind = record.kinds.get(answer).map(String::as_str);
        accuracy.count(&[kind, record.layout.as_deref()], right);
    }
    Ok(accuracy)
}
