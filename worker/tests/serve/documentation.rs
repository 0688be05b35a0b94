//! The examples of `docs/api.md`, sent as they stand.

use crate::worker::Worker;

#[tokio::test]
async fn every_example_of_the_documentation_works() {
    let worker = Worker::start(&[]).await;
    let text = include_str!("../../../docs/api.md");
    let mut examples = 0;
    for block in text.split("```http\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let (head, body) = block.split_once('\n').unwrap();
        let response = match head.split_once(' ').unwrap() {
            ("GET", path) => worker.get(path).await,
            (_, path) => worker
                .post(path)
                .body(body.to_owned())
                .send()
                .await
                .unwrap(),
        };
        let status = response.status();
        let answer = response.text().await.unwrap();
        assert!(status.is_success(), "{head}: {answer}");
        assert!(!answer.contains("\"error_code\":1"), "{head}: {answer}");
        examples += 1;
    }
    assert!(examples >= 8);
}
