//! The conversation templates of LLaVA and LLaVA-NeXT as data: who speaks how,
//! what separates turns, and what ends an answer.

use super::template_text as text;

/// How turns are put together (`SeparatorStyle`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `ROLE: text` and one separator after everything.
    Single,
    /// `ROLE: text`, one separator after the user's turn and another after the answer's.
    Two,
    /// The role carries its own punctuation; one separator after everything.
    Mpt,
    /// As `Mpt`, without a system turn and roles in strict alternation.
    Gemma,
    /// `role\ntext<separator>\n`.
    ChatMl,
    /// `[INST] text [/INST]`, the system text inside the first.
    Llama2,
    /// Headers by name, blank line, text, end of turn.
    Llama3,
    /// Texts alone, a separator after each.
    Plain,
}

/// A conversation template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Template {
    /// Names that it goes by, the first one its own.
    pub names: &'static [&'static str],
    /// How turns are put together.
    pub style: Style,
    /// What stands in front of the system text.
    pub system_prefix: &'static str,
    /// The system text, unless the request brings its own.
    pub system: &'static str,
    /// The user's role as written.
    pub user: &'static str,
    /// The model's role as written.
    pub assistant: &'static str,
    /// The separator, and in styles with two the one after the user's turn.
    pub sep: &'static str,
    /// The separator after an answer, in styles with two.
    pub sep2: &'static str,
    /// Turns that stand in front of every conversation, user first.
    pub preset: &'static [&'static str],
    /// An image is announced by an exchange of its own (`mmtag`).
    pub image_exchange: bool,
    /// Texts that end an answer.
    pub stop: &'static [&'static str],
}

impl Template {
    /// The template with this name, of LLaVA or of LLaVA-NeXT.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TEMPLATES
            .iter()
            .find(|template| template.names.contains(&name))
    }

    /// Every template.
    #[must_use]
    pub fn all() -> &'static [Self] {
        TEMPLATES
    }

    /// Every name that [`Self::named`] knows.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        TEMPLATES
            .iter()
            .flat_map(|template| template.names)
            .copied()
            .collect()
    }

    /// The template that LLaVA's web page takes for a model of this name.
    #[must_use]
    pub fn for_model_name(name: &str) -> &'static Self {
        let lower = name.to_lowercase();
        let has = |part: &str| lower.contains(part);
        // These three tests are case-sensitive in the original.
        let tagged = name.contains("mmtag") || name.contains("plain") && !name.contains("finetune");
        let key = if has("llava") {
            if has("llama-2") {
                "llava_llama_2"
            } else if has("mistral") || has("mixtral") {
                match (has("orca"), has("hermes")) {
                    (true, _) => "mistral_orca",
                    (_, true) => "chatml_direct",
                    _ => "mistral_instruct",
                }
            } else if has("llava-v1.6-34b") {
                "chatml_direct"
            } else if has("qwen") {
                "qwen_1_5"
            } else if has("v1") {
                if tagged { "v1_mmtag" } else { "llava_v1" }
            } else if has("mpt") {
                "mpt"
            } else if tagged {
                "v0_mmtag"
            } else {
                "llava_v0"
            }
        } else if has("mpt") {
            "mpt"
        } else if has("llama-2") {
            "llama_2"
        } else {
            "vicuna_v1"
        };
        Self::named(key).unwrap_or(&TEMPLATES[0])
    }
}

const BASE: Template = Template {
    names: &[],
    style: Style::Two,
    system_prefix: "",
    system: "",
    user: "USER",
    assistant: "ASSISTANT",
    sep: " ",
    sep2: "</s>",
    preset: &[],
    image_exchange: false,
    stop: &["</s>"],
};

const SINGLE: Template = Template {
    style: Style::Single,
    user: "Human",
    assistant: "Assistant",
    sep: "###",
    sep2: "",
    stop: &["###"],
    ..BASE
};

const LLAMA_2: Template = Template {
    style: Style::Llama2,
    sep: "<s>",
    ..BASE
};

const MPT: Template = Template {
    style: Style::Mpt,
    system_prefix: "<|im_start|>system\n",
    user: "<|im_start|>user\n",
    assistant: "<|im_start|>assistant\n",
    sep: "<|im_end|>",
    sep2: "",
    stop: &["<|im_end|>"],
    ..BASE
};

const QWEN: Template = Template {
    style: Style::ChatMl,
    user: "<|im_start|>user",
    assistant: "<|im_start|>assistant",
    ..MPT
};

const TEMPLATES: &[Template] = &[
    Template {
        names: &["vicuna_v1", "v1"],
        system: text::CURIOUS_USER,
        ..BASE
    },
    Template {
        names: &["v0", "default"],
        system: text::CURIOUS_HUMAN,
        preset: text::RENEWABLE,
        ..SINGLE
    },
    Template {
        names: &["llava_v0"],
        system: text::CURIOUS_HUMAN,
        ..SINGLE
    },
    Template {
        names: &["v0_mmtag", "llava_v0_mmtag"],
        system: text::VISUAL_CONTENT,
        image_exchange: true,
        ..SINGLE
    },
    Template {
        names: &["llava_v1"],
        system: text::CURIOUS_HUMAN,
        ..BASE
    },
    Template {
        names: &["v1_mmtag", "llava_v1_mmtag"],
        system: text::VISUAL_CONTENT,
        image_exchange: true,
        ..BASE
    },
    Template {
        names: &["llama_2"],
        system: text::LLAMA_2_SAFETY,
        ..LLAMA_2
    },
    Template {
        names: &["llava_llama_2"],
        system: text::LANGUAGE_AND_VISION,
        ..LLAMA_2
    },
    Template {
        names: &["llava_llama_2_simple"],
        system: text::ANSWER_VISUAL,
        ..LLAMA_2
    },
    Template {
        names: &["llava_llama_2_mmtag"],
        system: text::ANSWER_VISUAL_TAGGED,
        image_exchange: true,
        ..LLAMA_2
    },
    Template {
        names: &["llava_llama_3"],
        style: Style::Llama3,
        system: text::LANGUAGE_AND_VISION,
        user: "user",
        assistant: "assistant",
        sep: "<|eot_id|>",
        sep2: "",
        stop: &["<|eot_id|>"],
        ..BASE
    },
    Template {
        names: &["mistral_instruct", "llava_mistral_instruct"],
        sep: "",
        ..LLAMA_2
    },
    Template {
        names: &["mistral_orca"],
        system: text::MISTRAL_ORCA,
        ..MPT
    },
    Template {
        names: &["mistral_zephyr"],
        system_prefix: "<|system|>\n",
        system: "You are a helpful AI assistant.",
        user: "<|user|>\n",
        assistant: "<|assistant|>\n",
        sep: "</s>",
        stop: &["</s>"],
        ..MPT
    },
    Template {
        names: &["chatml_direct", "mistral_direct"],
        system: "Answer the questions.",
        ..MPT
    },
    Template {
        names: &["mpt"],
        system: text::LLM_BASED,
        ..MPT
    },
    Template {
        names: &["qwen_1_5", "qwen_2"],
        system: "You are a helpful assistant.",
        ..QWEN
    },
    Template {
        names: &["qwen_2_5"],
        system: text::QWEN_2_5,
        ..QWEN
    },
    Template {
        names: &["gemma_instruct"],
        style: Style::Gemma,
        user: "<start_of_turn>user\n",
        assistant: "<start_of_turn>model\n",
        sep: "<end_of_turn>\n",
        sep2: "",
        stop: &["<end_of_turn>"],
        ..BASE
    },
    Template {
        names: &["plain", "v0_plain"],
        style: Style::Plain,
        user: "",
        assistant: "",
        sep: "\n",
        sep2: "",
        stop: &[],
        ..BASE
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_templates_share_a_name() {
        let mut names = Template::names();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_models_name_chooses_as_on_llavas_page() {
        for (name, template) in [
            ("llava-v1.5-7b", "llava_v1"),
            ("llava-v1.6-mistral-7b", "mistral_instruct"),
            ("llava-v1.6-34b", "chatml_direct"),
            ("LLaVA-v1.6-vicuna-13b", "llava_v1"),
            ("llava-llama-2-13b-chat-lightning-preview", "llava_llama_2"),
            ("LLaVA-7b-v0", "llava_v0"),
            ("LLaVA-Lightning-MPT-7B-preview", "mpt"),
            ("llava-v1-mmtag-13b", "v1_mmtag"),
            ("llava-7b-plain", "v0_mmtag"),
            ("llava-plain-finetune", "llava_v0"),
            ("vicuna-7b-v1.5", "vicuna_v1"),
            ("llava-onevision-qwen2-7b-ov", "qwen_1_5"),
        ] {
            assert!(
                Template::for_model_name(name).names.contains(&template),
                "{name}"
            );
        }
    }
}
