//! The bytes that an entry of the vocabulary stands for. Decoding one token alone
//! would lose a space at its beginning, and parts of characters altogether.

use tokenizers::DecoderWrapper;

use super::sentencepiece::SPACE;

/// Bytes of the vocabulary's entry `piece`, as the tokenizer's `decoder` reads it.
pub(super) fn bytes(piece: &str, decoder: Option<&DecoderWrapper>) -> Vec<u8> {
    let by_letters = decoder.is_some_and(reads_letters);
    if by_letters
        && let Some(bytes) = piece
            .chars()
            .map(byte_of_letter)
            .collect::<Option<Vec<u8>>>()
    {
        return bytes;
    }
    match byte_by_number(piece) {
        Some(byte) => vec![byte],
        None => piece.replace(SPACE, " ").into_bytes(),
    }
}

/// Whether every byte is written as a letter of its own, as GPT-2 does.
fn reads_letters(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().any(reads_letters),
        _ => false,
    }
}

/// The byte that SentencePiece writes as `<0xE6>`.
fn byte_by_number(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2 leaves what can be seen as it is, and writes the other bytes, in their
/// order, as the letters from U+0100 on.
fn byte_of_letter(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code.checked_sub(0x100) {
        None => return is_visible(code).then_some(code as u8),
        Some(hidden @ 0..=0x20) => hidden,
        Some(hidden @ 0x21..=0x42) => hidden - 0x21 + 0x7f,
        Some(0x43) => 0xad,
        Some(_) => return None,
    };
    Some(byte as u8)
}

fn is_visible(code: u32) -> bool {
    matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;
    use crate::tokenize::TextTokenizer;

    #[test]
    fn every_byte_has_one_letter_and_the_librarys_decoder_agrees() {
        let letters = (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(|letter| Some((byte_of_letter(letter)?, letter)));
        let mut letters: Vec<_> = letters.collect();
        letters.sort_unstable();
        let bytes: Vec<u8> = letters.iter().map(|(byte, _)| *byte).collect();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        let spelt = |text: &str| -> String {
            text.bytes()
                .map(|byte| letters[usize::from(byte)].1)
                .collect()
        };
        let decoder = DecoderWrapper::ByteLevel(ByteLevel::default());
        for text in [" word", "\n\t\u{7f}\u{a0}\u{ad}", "漢é🦙"] {
            let decoded = tokenizers::Decoder::decode(&decoder, vec![spelt(text)]).unwrap();
            assert_eq!(decoded, text);
            assert_eq!(super::bytes(&spelt(text), Some(&decoder)), text.as_bytes());
        }
    }

    #[test]
    fn sentencepiece_marks_spaces_and_numbers_bytes() {
        let table: [(&str, &[u8]); 5] = [
            ("\u{2581}The", b" The"),
            ("<0xE6>", b"\xe6"),
            ("<0x0A>", b"\n"),
            ("<0x0A", b"<0x0A"),
            ("é", "é".as_bytes()),
        ];
        for (piece, expected) in table {
            assert_eq!(bytes(piece, None), expected, "{piece}");
        }
    }

    #[test]
    fn the_bytes_of_a_texts_tokens_add_up_to_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = "The red circle, 漢字 and 🦙; it's  \"two\" lines.\n\nYes";
        for dir in [
            "models/llava-shapes",
            "tests/fixtures/prompts/llama",
            "tests/fixtures/prompts/hf",
            "tests/fixtures/prompts/hf_legacy",
            "tests/fixtures/prompts/qwen",
        ] {
            let tokenizer = TextTokenizer::from_checkpoint(&root.join(dir)).unwrap();
            let encoded = tokenizer.inner().encode(text, false).unwrap();
            let ids = encoded.get_ids().iter();
            let bytes: Vec<u8> = ids.flat_map(|id| tokenizer.bytes(*id)).collect();
            let added = String::from_utf8(bytes).unwrap();
            assert_eq!(added.strip_prefix(' ').unwrap_or(&added), text, "{dir}");
        }
    }
}
