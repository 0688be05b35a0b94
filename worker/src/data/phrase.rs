//! The words for what a scene holds, each in exactly one place.

use super::scene::{Colour, Kind, Shape, Size};

impl Kind {
    /// The noun, singular.
    pub fn word(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
            Self::Ring => "ring",
        }
    }

    /// The noun, plural.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Cross => "crosses",
            Self::Ring => "rings",
        }
    }
}

impl Colour {
    /// The adjective.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Cyan => "cyan",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::Pink => "pink",
        }
    }
}

impl Size {
    /// The adjective.
    pub fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// `noun` with "a" or "an".
pub(super) fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

/// A count from zero to four in words.
pub(super) fn number(n: usize) -> &'static str {
    ["zero", "one", "two", "three", "four"]
        .get(n)
        .copied()
        .unwrap_or("many")
}

/// "a", "a and b", "a, b and c".
pub(super) fn list(items: &[String]) -> String {
    match items {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// The name of one ninth of the image.
pub(super) fn region((column, row): (usize, usize)) -> &'static str {
    const NAMES: [[&str; 3]; 3] = [
        ["top left", "top middle", "top right"],
        ["middle left", "center", "middle right"],
        ["bottom left", "bottom middle", "bottom right"],
    ];
    NAMES[row][column]
}

/// A sentence's first letter in upper case, and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => String::new(),
    }
}

impl Shape {
    /// "red circle".
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.colour.word(), self.kind.word())
    }

    /// "large red circle".
    pub(super) fn full_name(&self) -> String {
        format!("{} {}", self.size.word(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_articles_read_as_english() {
        assert_eq!(with_article("orange star"), "an orange star");
        assert_eq!(with_article("red star"), "a red star");
        let items: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(list(&items), "a, b and c");
        assert_eq!(list(&items[..2]), "a and b");
        assert_eq!(sentence(&list(&items[..1])), "A.");
    }
}
