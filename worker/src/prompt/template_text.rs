//! The system texts and preset turns of the conversation templates, letter for
//! letter: models were trained with them.

/// Vicuna v1.
pub(super) const CURIOUS_USER: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
     helpful, detailed, and polite answers to the user's questions.";

/// LLaVA v0 and v1.
pub(super) const CURIOUS_HUMAN: &str = "A chat between a curious human and an artificial intelligence assistant. The assistant \
     gives helpful, detailed, and polite answers to the human's questions.";

/// The two `mmtag` templates; the missing space is theirs.
pub(super) const VISUAL_CONTENT: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant is \
     able to understand the visual content that the user provides, and assist the user with a \
     variety of tasks using natural language.The visual content will be provided with the \
     following format: <Image>visual content</Image>.";

/// LLaMA 2's own; the double space is theirs.
pub(super) const LLAMA_2_SAFETY: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, \
     while being safe.  Your answers should not include any harmful, unethical, racist, sexist, \
     toxic, dangerous, or illegal content. Please ensure that your responses are socially \
     unbiased and positive in nature.\n\nIf a question does not make any sense, or is not \
     factually coherent, explain why instead of answering something not correct. If you don't \
     know the answer to a question, please don't share false information.";

/// LLaVA on LLaMA 2 and 3.
pub(super) const LANGUAGE_AND_VISION: &str = "You are a helpful language and vision assistant. You are able to understand the visual \
     content that the user provides, and assist the user with a variety of tasks using natural \
     language.";

/// LLaVA-NeXT on LLaMA 2.
pub(super) const ANSWER_VISUAL: &str =
    "Answer the questions about the visual content that the user provides.";

/// The same with tags.
pub(super) const ANSWER_VISUAL_TAGGED: &str = "Answer the questions about the visual content that the user provides.The visual content \
     will be provided with the following format: <Image>visual content</Image>.";

/// MistralOrca.
pub(super) const MISTRAL_ORCA: &str = "You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your \
     reasoning step-by-step to be sure you get the right answers!";

/// MPT.
pub(super) const LLM_BASED: &str = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful \
     and honest answers.";

/// Qwen 2.5.
pub(super) const QWEN_2_5: &str =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/// The exchange that opens every conversation of Vicuna v0.
pub(super) const RENEWABLE: &[&str] = &[
    "What are the key differences between renewable and non-renewable energy sources?",
    "Renewable energy sources are those that can be replenished naturally in a relatively short \
     amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy \
     sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, \
     and natural gas. Here are some key differences between renewable and non-renewable energy \
     sources:\n1. Availability: Renewable energy sources are virtually inexhaustible, while \
     non-renewable energy sources are finite and will eventually run out.\n2. Environmental \
     impact: Renewable energy sources have a much lower environmental impact than non-renewable \
     sources, which can lead to air and water pollution, greenhouse gas emissions, and other \
     negative effects.\n3. Cost: Renewable energy sources can be more expensive to initially set \
     up, but they typically have lower operational costs than non-renewable sources.\n4. \
     Reliability: Renewable energy sources are often more reliable and can be used in more \
     remote locations than non-renewable sources.\n5. Flexibility: Renewable energy sources are \
     often more flexible and can be adapted to different situations and needs, while \
     non-renewable sources are more rigid and inflexible.\n6. Sustainability: Renewable energy \
     sources are more sustainable over the long term, while non-renewable sources are not, and \
     their depletion can lead to economic and social instability.\n",
];
