//! An interpreter of Python's pickles that makes values and nothing else: a call is
//! noted down and never made, so nothing in a pickle can run. Values lie in one list
//! and name each other by their place, so neither depth nor shared parts can cost
//! more memory than the pickle is long.

use std::collections::HashMap;

/// Place of a value in [`Values`].
pub(super) type Id = usize;

/// One value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Int(i64),
    Text(String),
    /// `module.name` of a class or function.
    Global(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What would be called, and the tuple of its arguments.
    Call(Id, Id),
    /// What `persistent_load` would be given: in PyTorch's files, a storage.
    Stored(Id),
    /// A number, set or string of bytes that no tensor is made of.
    Other,
}

/// The values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<Value>);

impl Values {
    pub(super) fn get(&self, id: Id) -> &Value {
        self.0.get(id).unwrap_or(&Value::None)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, value: Value) -> Id {
        self.0.push(value);
        self.0.len() - 1
    }
}

/// Reads the pickle at the start of `bytes`: its values, the one that it stands
/// for, and the bytes that it took.
pub(super) fn read(bytes: &[u8]) -> Result<(Values, Id, usize), String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Values::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok((machine.values, root, machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Values,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// Runs one instruction; `false` after the last one.
    fn step(&mut self) -> Result<bool, String> {
        let begin = self.at;
        let [op] = self.fixed()?;
        match op {
            // PROTO and FRAME frame the text alone.
            0x80 => drop(self.fixed::<1>()?),
            0x95 => drop(self.fixed::<8>()?),
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'2' => {
                let top = *self.stack.last().ok_or("the stack is empty")?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Other),
            b'K' => {
                let [byte] = self.fixed()?;
                self.push(Value::Int(i64::from(byte)));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.fixed()?);
                self.push(Value::Int(i64::from(value)));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.fixed()?);
                self.push(Value::Int(i64::from(value)));
            }
            0x8a => self.long()?,
            b'G' => {
                self.fixed::<8>()?;
                self.push(Value::Other);
            }
            b'X' => self.text::<4>()?,
            0x8c => self.text::<1>()?,
            0x8d => self.text::<8>()?,
            // Python 2's strings, and bytes.
            b'U' | b'C' => self.opaque::<1>()?,
            b'T' | b'B' => self.opaque::<4>()?,
            0x8e | 0x96 => self.opaque::<8>()?,
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Value::Global(name));
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.push(Value::Global(format!("{module}.{name}")));
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(op - 0x84));
                let items = self.stack.split_off(from.ok_or("the stack is too short")?);
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.since_mark()?;
                self.push(Value::Dict(pairs(&items)?));
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(pairs(&items)?)?;
            }
            0x8f => self.push(Value::Other),
            0x90 => drop(self.since_mark()?),
            0x91 => {
                self.since_mark()?;
                self.push(Value::Other);
            }
            b'R' | 0x81 => self.call()?,
            // What state an object gets is no concern of its tensors.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Stored(id));
            }
            b'q' => {
                let [slot] = self.fixed()?;
                self.keep(u32::from(slot))?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.fixed()?);
                self.keep(slot)?;
            }
            0x94 => self.keep(self.memo.len() as u32)?,
            b'h' => {
                let [slot] = self.fixed()?;
                self.recall(u32::from(slot))?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.fixed()?);
                self.recall(slot)?;
            }
            other => {
                return Err(format!(
                    "instruction {other:#04x} at byte {begin} is not known"
                ));
            }
        }
        Ok(true)
    }

    fn push(&mut self, value: Value) {
        let id = self.values.add(value);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self
            .marks
            .last()
            .is_some_and(|mark| *mark >= self.stack.len())
        {
            return Err("a value is taken from below a mark".to_owned());
        }
        self.stack
            .pop()
            .ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let id = self.pop()?;
        match self.values.get(id) {
            Value::Text(text) => Ok(text.clone()),
            _ => Err("a name is no text".to_owned()),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        if mark > self.stack.len() {
            return Err("the stack ends below a mark".to_owned());
        }
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Value, String> {
        let top = *self.stack.last().ok_or("the stack is empty")?;
        self.values
            .0
            .get_mut(top)
            .ok_or_else(|| "the stack is broken".to_owned())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.top()? {
            Value::List(list) => list.extend(items),
            // An object that fills itself.
            Value::Call(..) | Value::Other => {}
            _ => return Err("a value is appended to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<(), String> {
        match self.top()? {
            Value::Dict(dict) => dict.extend(items),
            Value::Call(..) | Value::Other => {}
            _ => return Err("a key is set in what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let ordered = ["collections.OrderedDict", "collections.defaultdict"];
        let dict = match self.values.get(function) {
            Value::Global(name) => ordered.contains(&name.as_str()),
            _ => false,
        };
        self.push(match dict {
            true => Value::Dict(Vec::new()),
            false => Value::Call(function, arguments),
        });
        Ok(())
    }

    fn keep(&mut self, slot: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or("the stack is empty")?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let id = *self
            .memo
            .get(&slot)
            .ok_or("a value is recalled that was not kept")?;
        self.stack.push(id);
        Ok(())
    }

    /// A whole number of any length; those beyond 64 bits are no sizes.
    fn long(&mut self) -> Result<(), String> {
        let [length] = self.fixed()?;
        let bytes = self.take(usize::from(length))?;
        if bytes.len() > 8 {
            self.push(Value::Other);
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn text<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|error| error.to_string())?;
        let text = Value::Text(text.to_owned());
        self.push(text);
        Ok(())
    }

    fn opaque<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        let text = std::str::from_utf8(self.take(length)?);
        let value = text.map_or(Value::Other, |text| Value::Text(text.to_owned()));
        self.push(value);
        Ok(())
    }

    fn length<const N: usize>(&mut self) -> Result<usize, String> {
        let mut whole = [0; 8];
        whole[..N].copy_from_slice(&self.fixed::<N>()?);
        usize::try_from(u64::from_le_bytes(whole)).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or("it is cut short")?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| "it is cut short".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it is cut short at byte {}", self.bytes.len()))?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("a dictionary has a key without value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shared_parts_cost_no_more_than_the_pickle_is_long() {
        // Each level is a pair of the one before: written out it would be 2^60 values.
        let mut bytes = b"\x80\x02Nq\x00".to_vec();
        for level in 0..60u8 {
            bytes.extend([b'h', level, b'h', level, 0x86, b'q', level + 1]);
        }
        bytes.push(b'.');
        let (values, _, took) = read(&bytes).unwrap();
        assert!(values.0.len() < 100);
        assert_eq!(took, bytes.len());
    }

    #[test]
    fn depth_overflows_no_stack() {
        let mut bytes = b"N".to_vec();
        bytes.resize(1 << 20, 0x85);
        bytes.push(b'.');
        assert!(read(&bytes).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_instructions_make_the_reader_panic(
            bytes in prop::collection::vec(prop::sample::select(&b"(.0N)}]tldaeushRQbq\x00\x01\x85\x86\x87\x81\x93\x94KX"[..]), 0..60),
        ) {
            let _ = read(&bytes);
        }
    }
}
