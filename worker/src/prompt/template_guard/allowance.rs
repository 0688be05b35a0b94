//! The allowance itself: bytes that one rendering may read and write.

use super::rewrite::for_filter;
use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};
use std::cell::Cell;
use std::sync::Arc;

/// What every rendering may read and write, in bytes.
const BASE: u64 = 32 << 20;
/// What it may for each byte of the messages. A template that trims, tests and
/// joins a text in every way reads or writes it some 20 times.
const FOR_EACH: u64 = 64;
/// Lists within lists.
const DEEPEST: usize = 32;
/// What a value takes beside its text, in bytes.
const NODE: u64 = 16;
/// What a piece of a text takes.
const PIECE: u64 = 32;

thread_local! {
    /// What the rendering on this thread may still spend; a rendering never leaves its thread.
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Ends the allowance with the rendering.
pub(super) struct Allowance;

/// Begins a rendering of messages with `bytes` of text.
pub(super) fn begin(bytes: usize) -> Allowance {
    LEFT.set(BASE.saturating_add(FOR_EACH.saturating_mul(bytes as u64)));
    Allowance
}

impl Drop for Allowance {
    fn drop(&mut self) {
        LEFT.set(0);
    }
}

fn spend(bytes: u64) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::OutOfFuel,
            format!(
                "the template reads and writes more than {} MiB and {FOR_EACH} times the messages",
                BASE >> 20
            ),
        )),
    }
}

/// Writes what a template prints, and counts it.
pub(super) fn write(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    deep(value, 0)?;
    escape_formatter(out, state, value)
}

/// What is asked of the operands of an instruction, or of what it made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guard {
    /// It looks at texts, and at lists without what is in them.
    Read,
    /// It looks at everything within.
    Deep,
    /// It prints everything within, with marks.
    Inflate,
    /// It takes a text apart into letters, or a list into what is in it.
    List,
    /// It repeats a text or a list.
    Times,
    /// It joins a list, first, with a text.
    Join,
    /// It joins with a text, first, a list.
    JoinOn,
    /// It replaces a text by another.
    Replace,
    /// It shifts every line.
    Indent,
    /// It prints everything within, with indentation.
    Json,
    /// It prints values in fields whose width a text says.
    Format,
    /// It makes lists of a length that a number says.
    Fill,
    /// It takes a text apart where another stands.
    Split,
    /// It applies a filter to everything in a list.
    Map,
    /// It puts a value into a namespace.
    Store,
    /// It made a value.
    Made,
    /// It made a list or a map of what was there.
    Built,
}

/// Guards by the names that they are called by, which no template can write.
pub(super) const GUARDS: &[(&str, Guard)] = &[
    ("#read", Guard::Read),
    ("#deep", Guard::Deep),
    ("#inflate", Guard::Inflate),
    ("#list", Guard::List),
    ("#times", Guard::Times),
    ("#join", Guard::Join),
    ("#join-on", Guard::JoinOn),
    ("#replace", Guard::Replace),
    ("#indent", Guard::Indent),
    ("#json", Guard::Json),
    ("#format", Guard::Format),
    ("#fill", Guard::Fill),
    ("#split", Guard::Split),
    ("#map", Guard::Map),
    ("#store", Guard::Store),
    ("#made", Guard::Made),
    ("#built", Guard::Built),
];

impl Object for Guard {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        match (**self, args) {
            (Guard::Made, [value]) => made(value),
            (Guard::Built, [value]) => {
                nesting(value, 0)?;
                made(value)
            }
            (guard, args) => {
                guard.ask(args)?;
                // Unpacking puts the first on top of the stack, where the last was.
                let back: Vec<Value> = args.iter().rev().cloned().collect();
                Ok(Value::from(back))
            }
        }
    }
}

impl Guard {
    fn ask(self, args: &[Value]) -> Result<(), Error> {
        let first = args.first().unwrap_or(&Value::UNDEFINED);
        let all = || args.iter().try_for_each(|value| deep(value, 0));
        match self {
            Self::Read => spend(args.iter().map(text_len).sum()),
            Self::Deep => all(),
            Self::Inflate => (0..6).try_for_each(|_| all()),
            Self::List => {
                spend(args.iter().skip(1).map(text_len).sum())?;
                listed(first)
            }
            Self::Times => match args {
                [a, b] => times(a, b).and_then(|()| times(b, a)),
                _ => Ok(()),
            },
            Self::Join => join(first, args.get(1)),
            Self::JoinOn => join(args.get(1).unwrap_or(&Value::UNDEFINED), Some(first)),
            Self::Replace => {
                all()?;
                let len = |index: usize| args.get(index).map_or(0, text_len);
                let most = text_len(first) / len(1).max(1) + 1;
                spend(most.saturating_mul(len(2)))
            }
            Self::Indent => {
                all()?;
                let lines = first.as_str().map_or(1, |text| text.split('\n').count());
                spend(number(args, 1, "width").saturating_mul(lines as u64))
            }
            Self::Json => {
                let before = LEFT.get();
                (0..6).try_for_each(|_| all())?;
                let values = (before - LEFT.get()) / 6 / NODE;
                let width = number(args, 1, "indent").saturating_mul(DEEPEST as u64);
                spend(values.saturating_mul(width))
            }
            Self::Format => format(first, &args[args.len().min(1)..]),
            Self::Fill => {
                listed(first)?;
                spend(number(args, 1, "count").saturating_mul(NODE))
            }
            Self::Split => split(first, args.get(1)),
            Self::Map => map(first, &args[args.len().min(1)..]),
            Self::Store => match first {
                value if is_namespace(value) => Err(nested()),
                _ => spend(NODE),
            },
            Self::Made | Self::Built => Ok(()),
        }
    }
}

/// Counts a value with everything within.
fn deep(value: &Value, depth: usize) -> Result<(), Error> {
    spend(NODE + text_len(value))?;
    if depth > DEEPEST {
        return Err(nested());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .try_for_each(|value| deep(&value, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            deep(&key, depth + 1)?;
            deep(&value.get_item(&key)?, depth + 1)
        }),
        _ => Ok(()),
    }
}

/// Checks how deep a new list or map is; what it holds was counted when it was made.
fn nesting(value: &Value, depth: usize) -> Result<(), Error> {
    spend(NODE / 4)?;
    if depth > DEEPEST {
        return Err(nested());
    }
    let inside = |value: Value| match is_namespace(&value) {
        true => Err(nested()),
        false => nesting(&value, depth + 1),
    };
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(inside),
        ValueKind::Map => value
            .try_iter()?
            .try_for_each(|key| inside(value.get_item(&key)?)),
        _ => Ok(()),
    }
}

/// Counts a new value. What is computed only when it is looked at is computed
/// now, so that it cannot become a chain of such values.
fn made(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => {
            let mut all = Vec::new();
            for item in value.try_iter()? {
                spend(NODE + text_len(&item))?;
                all.push(item);
            }
            Ok(Value::from(all))
        }
        ValueKind::Seq | ValueKind::Map => {
            spend(NODE.saturating_mul(value.len().unwrap_or(0) as u64))?;
            Ok(value.clone())
        }
        _ => {
            spend(text_len(value))?;
            Ok(value.clone())
        }
    }
}

fn listed(value: &Value) -> Result<(), Error> {
    let items = value.len().unwrap_or(0) as u64;
    spend(match value.kind() {
        ValueKind::String | ValueKind::Bytes => text_len(value).saturating_mul(PIECE),
        _ => items.saturating_mul(NODE),
    })
}

/// `value` as many times as `number` says.
fn times(value: &Value, number: &Value) -> Result<(), Error> {
    let Some(number) = number.as_usize() else {
        return Ok(());
    };
    let one = match value.kind() {
        ValueKind::String => text_len(value),
        ValueKind::Seq | ValueKind::Iterable => {
            NODE.saturating_mul(value.len().unwrap_or(0) as u64)
        }
        _ => 0,
    };
    spend(one.saturating_mul(number as u64))
}

fn join(list: &Value, between: Option<&Value>) -> Result<(), Error> {
    listed(list)?;
    deep(list, 0)?;
    let between = between.map_or(0, text_len);
    let count = match list.kind() {
        ValueKind::String => text_len(list),
        _ => list.len().unwrap_or(0) as u64,
    };
    spend(between.saturating_mul(count))
}

fn split(text: &Value, at: Option<&Value>) -> Result<(), Error> {
    let Some(text) = text.as_str() else {
        return listed(text);
    };
    let pieces = match at.and_then(Value::as_str).filter(|at| !at.is_empty()) {
        Some(at) => text.matches(at).count(),
        None => text.split_whitespace().count(),
    };
    let lines = text.matches('\n').count();
    spend(text.len() as u64 + PIECE * (pieces.max(lines) as u64 + 1))
}

/// Every field of `pattern` may print every value, as wide as any number says.
fn format(pattern: &Value, values: &[Value]) -> Result<(), Error> {
    let before = LEFT.get();
    values.iter().try_for_each(|value| deep(value, 0))?;
    let spent = before - LEFT.get();
    let pattern = pattern.as_str().unwrap_or_default();
    let fields = pattern.matches(['%', '{']).count() as u64 + 1;
    let digits = pattern
        .split(|letter: char| !letter.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse::<u64>().unwrap_or(u64::MAX));
    let given = values
        .iter()
        .map(|value| value.as_usize().unwrap_or(0) as u64);
    let widest = digits.chain(given).max().unwrap_or(0);
    spend(pattern.len() as u64)?;
    spend(fields.saturating_mul(spent.saturating_add(widest)))
}

/// A filter by its name over everything in `list`.
fn map(list: &Value, filter: &[Value]) -> Result<(), Error> {
    listed(list)?;
    // Without a name it takes an attribute of each, which makes no text.
    let Some(name) = filter.first().and_then(Value::as_str) else {
        return Ok(());
    };
    let guard = GUARDS
        .iter()
        .find(|(guard, _)| *guard == for_filter(name))
        .map_or(Guard::Deep, |(_, guard)| *guard);
    if !matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return deep(list, 0);
    }
    list.try_iter()?.try_for_each(|item| {
        let rest = filter.iter().skip(1).cloned();
        guard.ask(&[item].into_iter().chain(rest).collect::<Vec<_>>())
    })
}

/// The number that a filter gets as its argument `index` or by `name`.
fn number(args: &[Value], index: usize, name: &str) -> u64 {
    let named = || args.last()?.get_attr(name).ok()?.as_usize();
    let given = args.get(index).and_then(Value::as_usize).or_else(named);
    given.unwrap_or(4) as u64
}

fn text_len(value: &Value) -> u64 {
    let bytes = || value.as_bytes().map_or(0, <[u8]>::len);
    value.as_str().map_or_else(bytes, str::len) as u64
}

fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn nested() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("values nested more than {DEEPEST} deep, or a namespace in another"),
    )
}
