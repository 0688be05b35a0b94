//! What is planned for keys and values is what they take.

use serde_json::Value;

use crate::worker::{Worker, ask};

#[tokio::test]
async fn long_prompts_in_every_slot_take_no_more_memory_than_is_planned() {
    // Two prompts of 900 tokens, of which each takes 4 KiB; all slots could hold 64 MiB.
    let planned = 8 << 20;
    let worker = Worker::start_demo(&["--kv-memory", &planned.to_string()]).await;
    let mut before = 0;
    for n in 0..32 {
        // The demo's tokenizer takes digits one by one.
        let digits: String = n.to_string().chars().cycle().take(900).collect();
        let answer = worker.chat(&ask(&digits, 2)).await;
        let answer: Value = answer.json().await.unwrap();
        assert!(
            answer["usage"]["prompt_tokens"].as_u64() > Some(900),
            "{answer}"
        );
        if n == 3 {
            before = worker.memory();
        }
    }
    let grown = worker.memory().saturating_sub(before);
    assert!(
        grown < planned,
        "{grown} bytes more than after a few prompts"
    );
}
