//! What is planned for keys and values is what they take.

use futures::future::join_all;
use serde_json::Value;

use crate::worker::{Worker, ask};

#[tokio::test]
async fn long_prompts_that_visit_every_slot_take_no_more_memory_than_is_planned() {
    const SLOTS: usize = 8;
    // Of the demo's tokens each takes 4 KiB: one long prompt at a time is half of it.
    const PLANNED: usize = 4 << 20;
    let (slots, planned) = (SLOTS.to_string(), PLANNED.to_string());
    let worker = Worker::start_demo(&[
        "--max-running-requests",
        &slots,
        "--kv-memory",
        &planned,
        "--max-queue-length",
        "64",
    ])
    .await;
    let mut before = 0;
    for round in 0..SLOTS {
        // The tokenizer takes digits one by one.
        let long: String = (round + 1).to_string().repeat(500);
        let answer: Value = worker.chat(&ask(&long, 2)).await.json().await.unwrap();
        assert!(
            answer["usage"]["prompt_tokens"].as_u64() > Some(500),
            "{answer}"
        );
        let short = (0..SLOTS).map(async |n| {
            let text = format!("Question {n} of round {round}?");
            assert_eq!(worker.chat(&ask(&text, 2)).await.status(), 200);
        });
        join_all(short).await;
        if round == 0 {
            before = worker.memory();
        }
    }
    let grown = worker.memory().saturating_sub(before);
    // Some is the allocator's own; a slot that kept its long prompt would be 2 MiB more.
    assert!(grown < 6 << 20, "{grown} bytes more than after one round");
}
