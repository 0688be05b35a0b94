//! What SDKs send beside what is asked, and what asks for nothing special.

use serde_json::{Value, json};

use crate::worker::{Worker, ask, text};

#[tokio::test]
async fn fields_that_ask_for_nothing_special_and_unknown_ones_change_no_answer() {
    let worker = Worker::start(&[]).await;
    let plain = text(worker.chat(&ask("Hi", 6)).await).await;
    for (field, value) in [
        ("tools", json!([])),
        ("tools", Value::Null),
        ("tool_choice", json!("none")),
        ("tool_choice", json!("auto")),
        ("tool_choice", Value::Null),
        ("response_format", json!({"type": "text"})),
        ("response_format", Value::Null),
        ("response_format", json!({})),
        ("user", json!("somebody")),
        ("metadata", json!({"team": "blue"})),
        ("store", json!(false)),
        ("parallel_tool_calls", json!(true)),
        ("nobody_knows_this", json!({"deep": [1, {"deeper": null}]})),
    ] {
        let mut body = ask("Hi", 6);
        body[field] = value;
        let answer = worker.chat(&body).await;
        assert_eq!(answer.status(), 200, "{body}");
        assert_eq!(text(answer).await, plain, "{body}");
    }
    let body = json!({"prompt": "Hi", "max_tokens": 2, "user": "somebody", "nobody_knows_this": 1});
    let request = worker.post("/v1/completions").body(body.to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
}
