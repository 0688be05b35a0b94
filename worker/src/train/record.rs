//! LLaVA's conversation files, read lazily: the file is scanned once for where
//! each record lies, and a record is parsed when its turn comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A record that cannot be trained on, by file and place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, record {index} (id {id}): {reason}")]
pub struct Fault {
    /// The data file.
    pub file: String,
    /// Its place in the file, from 0.
    pub index: usize,
    /// Its `id` field; empty where it could not be read.
    pub id: String,
    /// What is wrong and how to mend it.
    pub reason: String,
}

/// The data file itself could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read data file {path}")]
pub struct DataError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// Its name for messages.
    #[serde(default)]
    pub id: serde_json::Value,
    /// Images, relative to the image folder.
    #[serde(default, alias = "images")]
    image: Images,
    /// The turns in order.
    pub conversations: Vec<Turn>,
    /// What each answer is about, for accuracy by kind.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// A second name that accuracy is reported under.
    #[serde(default)]
    pub layout: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Images {
    One(String),
    Many(Vec<String>),
    #[default]
    None,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub from: Speaker,
    /// What is said; `<image>` stands for an image.
    pub value: String,
}

/// Who speaks, under every name that LLaVA's files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// The person.
    #[serde(alias = "user")]
    Human,
    /// The model.
    #[serde(alias = "assistant")]
    Gpt,
    /// Instructions instead of the template's own.
    System,
}

/// Marks an image's place in a turn.
pub const IMAGE_MARK: &str = "<image>";

impl Record {
    /// Images in order.
    pub fn images(&self) -> &[String] {
        match &self.image {
            Images::One(one) => std::slice::from_ref(one),
            Images::Many(many) => many,
            Images::None => &[],
        }
    }

    /// Words of all turns, the measure by which batches are grouped.
    pub fn words(&self) -> usize {
        self.conversations
            .iter()
            .map(|t| t.value.split_whitespace().count())
            .sum()
    }

    /// What makes this record unfit, if anything: turns out of order, or image marks that do
    /// not match the images.
    pub fn defect(&self) -> Option<String> {
        let skip = usize::from(
            self.conversations
                .first()
                .is_some_and(|t| t.from == Speaker::System),
        );
        let turns = &self.conversations[skip..];
        if turns.is_empty() {
            return Some("holds no turns".to_owned());
        }
        for (i, turn) in turns.iter().enumerate() {
            let wanted = if i % 2 == 0 {
                Speaker::Human
            } else {
                Speaker::Gpt
            };
            if turn.from != wanted {
                return Some(format!(
                    "turn {i} is from {:?}; turns must alternate, human first",
                    turn.from
                ));
            }
        }
        if !turns.len().is_multiple_of(2) {
            return Some("ends with a question that has no answer".to_owned());
        }
        let marks: usize = turns
            .iter()
            .map(|t| t.value.matches(IMAGE_MARK).count())
            .sum();
        let images = self.images().len();
        (marks != images).then(|| format!("has {images} image(s) but {marks} {IMAGE_MARK} mark(s)"))
    }
}

/// A data file with the places of its records.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    file: File,
    spans: Vec<(u64, usize)>,
}

impl RecordFile {
    /// Scans `path`: one record a line for `.jsonl`, else the objects of a JSON array.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let reader = BufReader::with_capacity(1 << 20, &file);
        let lines = path.extension().is_some_and(|e| e == "jsonl");
        let spans = if lines {
            line_spans(reader)
        } else {
            object_spans(reader)
        };
        let spans = spans.map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            spans,
        })
    }

    /// Number of records, sound or not.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the file holds no record.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The text of a record.
    ///
    /// # Errors
    /// A [`Fault`] that names the record.
    pub fn text(&self, index: usize) -> Result<String, Fault> {
        let (start, len) = self.spans[index];
        let mut bytes = vec![0; len];
        let read = self
            .file
            .read_exact_at(&mut bytes, start)
            .map_err(|e| e.to_string());
        (read.and_then(|()| String::from_utf8(bytes).map_err(|e| e.to_string())))
            .map_err(|reason| self.fault(index, "", reason))
    }

    /// Parses and checks a record.
    ///
    /// # Errors
    /// A [`Fault`] that names the record and what is wrong.
    pub fn get(&self, index: usize) -> Result<Record, Fault> {
        let text = self.text(index)?;
        let record: Record = serde_json::from_str(&text)
            .map_err(|e| self.fault(index, &id_of(&text), format!("is not a conversation: {e}")))?;
        match record.defect() {
            Some(reason) => Err(self.fault(index, &plain(&record.id), reason)),
            None => Ok(record),
        }
    }

    /// A fault of the record at `index`.
    pub fn fault(&self, index: usize, id: &str, reason: impl Into<String>) -> Fault {
        Fault {
            file: self.path.display().to_string(),
            index,
            id: id.to_owned(),
            reason: reason.into(),
        }
    }
}

/// An id as people write it: strings without quotes.
pub fn plain(id: &serde_json::Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn id_of(text: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
    value
        .and_then(|v| v.get("id").map(plain))
        .unwrap_or_default()
}

fn line_spans(mut reader: impl BufRead) -> std::io::Result<Vec<(u64, usize)>> {
    let (mut spans, mut start, mut line) = (Vec::new(), 0u64, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(spans);
        }
        if !line.trim_ascii().is_empty() {
            spans.push((start, line.trim_ascii_end().len()));
        }
        start += read as u64;
    }
}

/// Where the objects of an array start and end, by counting braces outside strings.
fn object_spans(mut reader: impl Read) -> std::io::Result<Vec<(u64, usize)>> {
    let (mut spans, mut buffer, mut at) = (Vec::new(), vec![0; 1 << 20], 0u64);
    let (mut depth, mut start, mut quoted, mut escaped) = (0usize, 0u64, false, false);
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(spans);
        }
        for &byte in &buffer[..read] {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b'{' if !quoted => {
                    if depth == 0 {
                        start = at;
                    }
                    depth += 1;
                }
                b'}' if !quoted && depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        spans.push((start, (at + 1 - start) as usize));
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, RecordFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let file = RecordFile::open(&path).unwrap();
        (dir, file)
    }

    const GOOD: &str = r#"{"id": "a", "image": "x.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat {is} \"this\"?"}, {"from": "gpt", "value": "A }."}]}"#;

    #[test]
    fn an_array_and_a_line_file_give_the_same_records() {
        let (_a, array) = file("a.json", &format!("[{GOOD},\n {GOOD}]"));
        let line = GOOD.replace('\n', "");
        let (_b, lines) = file("b.jsonl", &format!("{line}\n\n{line}\n"));
        assert_eq!((array.len(), lines.len()), (2, 2));
        assert_eq!(array.get(1).unwrap(), lines.get(1).unwrap());
        assert_eq!(array.get(0).unwrap().images(), ["x.png"]);
    }

    #[test]
    fn a_bad_record_is_named_by_file_and_place_and_harms_no_other() {
        let line = GOOD.replace('\n', "");
        let marks = line.replace("<image>", "");
        let order = line.replace(r#""from": "human""#, r#""from": "gpt""#);
        let (_dir, lines) = file(
            "c.jsonl",
            &format!("{line}\n{{broken\n{marks}\n{order}\n{line}\n"),
        );
        let fault = |i: usize| lines.get(i).unwrap_err();
        assert!(
            fault(1).to_string().contains("c.jsonl, record 1"),
            "{}",
            fault(1)
        );
        assert!(
            fault(2).reason.contains("1 image(s) but 0 <image>"),
            "{}",
            fault(2)
        );
        assert_eq!(fault(2).id, "a");
        assert!(fault(3).reason.contains("human first"), "{}", fault(3));
        assert!(lines.get(0).is_ok() && lines.get(4).is_ok());
    }
}
