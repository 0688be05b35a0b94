//! A compiled template with guards: calls of [`Guard`](super::allowance::Guard)s,
//! which take an instruction's operands from the stack, ask the allowance, and
//! put them back, or look at what an instruction has made.

use minijinja::machinery::{Instruction, Instructions};
use minijinja::{Error, ErrorKind, Value};

/// The same instructions, each behind its guards.
///
/// # Errors
/// The template calls something with unpacked arguments.
pub(super) fn guarded<'a>(plain: &Instructions<'a>) -> Result<Instructions<'a>, Error> {
    // Where each instruction begins; a jump to it must meet its guards too.
    let mut starts = Vec::new();
    let mut all = Vec::new();
    while let Some(instruction) = plain.get(starts.len() as u32) {
        let line = plain.get_line(starts.len() as u32).unwrap_or_default();
        starts.push(all.len() as u32);
        guard(instruction, |instruction| all.push((instruction, line)))?;
    }
    starts.push(all.len() as u32);
    let mut out = Instructions::new(plain.name(), plain.source());
    for (mut instruction, line) in all {
        if let Some(target) = target(&mut instruction) {
            *target = starts.get(*target as usize).copied().unwrap_or(*target);
        }
        out.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX));
    }
    Ok(out)
}

fn target<'i>(instruction: &'i mut Instruction<'_>) -> Option<&'i mut u32> {
    match instruction {
        Instruction::Jump(to)
        | Instruction::JumpIfFalse(to)
        | Instruction::JumpIfFalseOrPop(to)
        | Instruction::JumpIfTrueOrPop(to)
        | Instruction::Iterate(to)
        | Instruction::BuildMacro(_, to, _) => Some(to),
        _ => None,
    }
}

/// What a guard looks at: so many operands before, or the result, by which guard.
enum Look {
    Before(&'static str, u16),
    After(&'static str),
    Both(&'static str, u16, &'static str),
    Nowhere,
}

fn guard<'a>(
    instruction: &Instruction<'a>,
    mut add: impl FnMut(Instruction<'a>),
) -> Result<(), Error> {
    use Instruction as I;
    let look = match instruction {
        I::EmitRaw(text) => {
            // Emitted like any value, it is counted like any.
            add(I::LoadConst(Value::from_safe_string((*text).to_owned())));
            add(I::Emit);
            return Ok(());
        }
        I::Mul => Look::Both("#times", 2, "#made"),
        I::Add => Look::Both("#read", 2, "#made"),
        I::StringConcat => Look::Both("#deep", 2, "#made"),
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => {
            Look::Before("#deep", 2)
        }
        I::GetItem => Look::Before("#read", 2),
        I::Slice => Look::Both("#read", 4, "#made"),
        I::PushLoop(_) | I::UnpackList(_) => Look::Before("#list", 1),
        I::SetAttr(_) => Look::Before("#store", 2),
        I::PerformTest(_, count, _) => match known(*count)? {
            1 => Look::Before("#read", 1),
            count => Look::Before("#deep", count),
        },
        I::ApplyFilter(name, count, _) => {
            let nests = matches!(*name, "batch" | "slice" | "zip" | "groupby");
            let made = if nests { "#built" } else { "#made" };
            Look::Both(for_filter(name), known(*count)?, made)
        }
        I::CallMethod(name, count) => Look::Both(for_method(name), known(*count)?, "#made"),
        I::CallFunction(_, count) | I::CallObject(count) => {
            Look::Both("#read", known(*count)?, "#made")
        }
        I::BuildMap(_) | I::BuildKwargs(_) | I::BuildList(_) | I::BuildTuple(_) => {
            Look::After("#built")
        }
        I::EndCapture => Look::After("#made"),
        _ => Look::Nowhere,
    };
    if let Look::Before(guard, count) | Look::Both(guard, count, _) = look
        && count > 0
    {
        add(I::CallFunction(guard, Some(count)));
        add(I::UnpackList(usize::from(count)));
    }
    add(instruction.clone());
    match look {
        Look::After(guard) | Look::Both(_, _, guard) => add(I::CallFunction(guard, Some(1))),
        Look::Before(..) | Look::Nowhere => {}
    }
    Ok(())
}

fn known(count: Option<u16>) -> Result<u16, Error> {
    count.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "a chat template cannot call with unpacked arguments",
        )
    })
}

/// The guard of a filter: by what it does with what it gets.
pub(super) fn for_filter(name: &str) -> &'static str {
    match name {
        "length" | "count" | "first" | "last" | "default" | "d" | "attr" | "safe" | "bool"
        | "int" | "float" | "abs" | "round" => "#read",
        "list" | "items" | "select" | "reject" | "selectattr" | "rejectattr" | "unique"
        | "chain" | "zip" | "groupby" | "reverse" | "sort" | "dictsort" => "#list",
        "escape" | "e" | "urlencode" | "pprint" => "#inflate",
        "tojson" => "#json",
        "join" => "#join",
        "replace" => "#replace",
        "indent" => "#indent",
        "format" => "#format",
        "batch" | "slice" => "#fill",
        "split" | "lines" => "#split",
        "map" => "#map",
        _ => "#deep",
    }
}

fn for_method(name: &str) -> &'static str {
    match name {
        "join" => "#join-on",
        "replace" => "#replace",
        "format" => "#format",
        "split" | "splitlines" => "#split",
        _ => "#read",
    }
}
