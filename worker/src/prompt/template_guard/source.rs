//! What the text of a template shows before it is compiled. minijinja computes
//! constant expressions while it compiles, where no allowance is asked.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Longest template, in bytes; the longest of well-known models takes 40 KB.
const LONGEST: usize = 128 << 10;
/// Tokens between `{%` and `%}`; the longest known condition has some 200.
const TOKENS: usize = 2000;
/// What the constants of one expression may become when they are multiplied.
const PRODUCT: u128 = 1 << 20;

/// # Errors
/// The template is longer than any, or multiplies constants to a size that none needs.
pub(super) fn check(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::new(ErrorKind::InvalidOperation, problem));
    if source.len() > LONGEST {
        return refuse(format!("it is longer than {LONGEST} bytes"));
    }
    let mut expression = Expression::default();
    for token in tokenize(source, false, syntax) {
        let (token, span) = token?;
        expression.add(&token);
        if expression.tokens > TOKENS {
            return refuse(format!(
                "line {}: an expression of more than {TOKENS} tokens",
                span.start_line
            ));
        }
        if expression.grows() {
            return refuse(format!(
                "line {}: constants multiplied to more than {PRODUCT} bytes",
                span.start_line
            ));
        }
    }
    Ok(())
}

/// What stands between two braces.
#[derive(Default)]
struct Expression {
    tokens: usize,
    multiplies: bool,
    /// Product of its whole numbers.
    numbers: u128,
    /// Bytes of its texts, and one for each token.
    texts: u128,
}

impl Expression {
    fn add(&mut self, token: &Token<'_>) {
        self.tokens += 1;
        self.texts += 1;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => {
                *self = Self {
                    numbers: 1,
                    ..Self::default()
                };
            }
            Token::Mul | Token::Pow => self.multiplies = true,
            Token::Str(text) => self.texts += text.len() as u128,
            Token::String(text) => self.texts += text.len() as u128,
            Token::Int(number) => self.times(u128::from(*number)),
            Token::Int128(number) => self.times(**number),
            _ => {}
        }
    }

    fn times(&mut self, number: u128) {
        self.numbers = self.numbers.saturating_mul(number.max(1));
    }

    fn grows(&self) -> bool {
        self.multiplies && self.numbers.saturating_mul(self.texts) > PRODUCT
    }
}
