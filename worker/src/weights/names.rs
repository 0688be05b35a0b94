//! The names of tensors: one set of our own, and what each layout writes for
//! them. A checkpoint's names are turned into ours once, when its headers are
//! read; messages turn them back.
//!
//! transformers 5 writes the classic names again, but `vision_tower.` alone
//! before the tower's.
//!
//! | ours | original | transformers, classic | 4.52 to 4.57 | 5.x |
//! |---|---|---|---|---|
//! | `text.` | `model.` | `language_model.model.` | `model.language_model.` | same |
//! | `head.` | `lm_head.` | `language_model.lm_head.` | `lm_head.` | same |
//! | `vision.` | `model.vision_tower.vision_tower.vision_model.` | `vision_tower.vision_model.` | `model.vision_tower.vision_model.` | `model.vision_tower.` |
//! | `projector.0.`, `.2.` | `model.mm_projector.0.`, `.2.` | `multi_modal_projector.linear_1.`, `_2.` | `model.multi_modal_projector.…` | same |
//! | `newline` | `model.image_newline` | `image_newline` | `model.image_newline` | same |

/// Which set of names a checkpoint's files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Naming {
    /// LLaVA's own.
    Original,
    /// transformers until 4.51, and what the hub holds.
    Classic,
    /// transformers 4.52 to 4.57.
    Nested,
    /// transformers 5.
    Flat,
    /// A vision tower in a folder of its own.
    Tower,
}

/// Our prefix and the layout's, the most special first.
type Table = &'static [(&'static str, &'static str)];

const ORIGINAL: Table = &[
    ("vision.", "model.vision_tower.vision_tower.vision_model."),
    ("projector.", "model.mm_projector."),
    ("newline", "model.image_newline"),
    ("head.", "lm_head."),
    ("text.", "model."),
];
const CLASSIC: Table = &[
    ("vision.", "vision_tower.vision_model."),
    ("vision.", "vision_tower."),
    ("projector.0.", "multi_modal_projector.linear_1."),
    ("projector.2.", "multi_modal_projector.linear_2."),
    ("newline", "image_newline"),
    ("head.", "language_model.lm_head."),
    ("text.", "language_model.model."),
];
const NESTED: Table = &[
    ("vision.", "model.vision_tower.vision_model."),
    ("projector.0.", "model.multi_modal_projector.linear_1."),
    ("projector.2.", "model.multi_modal_projector.linear_2."),
    ("newline", "model.image_newline"),
    ("head.", "lm_head."),
    ("text.", "model.language_model."),
];
const FLAT: Table = &[
    ("vision.", "model.vision_tower."),
    ("projector.0.", "model.multi_modal_projector.linear_1."),
    ("projector.2.", "model.multi_modal_projector.linear_2."),
    ("newline", "model.image_newline"),
    ("head.", "lm_head."),
    ("text.", "model.language_model."),
];
const TOWER: Table = &[("vision.", "vision_model.")];

impl Naming {
    fn table(self) -> Table {
        match self {
            Self::Original => ORIGINAL,
            Self::Classic => CLASSIC,
            Self::Nested => NESTED,
            Self::Flat => FLAT,
            Self::Tower => TOWER,
        }
    }

    /// The naming that `names` follow, told by the names that only one has.
    pub fn detect<'a>(names: &(impl Iterator<Item = &'a str> + Clone)) -> Self {
        let any = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
        if any("model.vision_tower.vision_tower.") || any("model.mm_projector.") {
            Self::Original
        } else if any("language_model.") || any("multi_modal_projector.") {
            Self::Classic
        } else if any("model.vision_tower.vision_model.") {
            Self::Nested
        } else if any("model.language_model.") || any("model.multi_modal_projector.") {
            Self::Flat
        } else if any("vision_model.") {
            Self::Tower
        } else {
            Self::Original
        }
    }

    /// Our name for the checkpoint's `name`; `None` for what no model here uses.
    pub fn ours(self, name: &str) -> Option<String> {
        // A projector of one product has no number in the original layout.
        if let (Self::Original, Some(rest)) = (self, name.strip_prefix("model.mm_projector."))
            && (rest == "weight" || rest == "bias")
        {
            return Some(format!("projector.0.{rest}"));
        }
        self.table()
            .iter()
            .find_map(|(ours, theirs)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
    }

    /// The checkpoint's name for `ours`, for messages and for conversion.
    pub fn theirs(self, ours: &str) -> Option<String> {
        self.table()
            .iter()
            .find_map(|(prefix, theirs)| Some(format!("{theirs}{}", ours.strip_prefix(prefix)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_way_there_and_back_in_every_layout() {
        for naming in [
            Naming::Original,
            Naming::Classic,
            Naming::Nested,
            Naming::Flat,
        ] {
            for ours in [
                "text.embed_tokens.weight",
                "text.layers.3.self_attn.q_proj.weight",
                "head.weight",
                "vision.embeddings.class_embedding",
                "projector.0.weight",
                "projector.2.bias",
                "newline",
            ] {
                let theirs = naming.theirs(ours).unwrap();
                assert_eq!(
                    naming.ours(&theirs).as_deref(),
                    Some(ours),
                    "{naming:?} {theirs}"
                );
                assert_eq!(
                    Naming::detect(
                        &[
                            theirs.as_str(),
                            &naming.theirs("projector.0.weight").unwrap(),
                            &naming.theirs("vision.post_layernorm.weight").unwrap()
                        ]
                        .into_iter()
                    ),
                    naming,
                    "{theirs}"
                );
            }
        }
    }
}
