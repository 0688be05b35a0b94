//! The engine with [`tiny`]'s model, whose next token depends on everything its slot
//! holds: any mistake in chunks, reuse or preemption changes the answer.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use protocol::openai::FinishReason;
use shell::clock;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::tiny::{EOS, FAULT, PANIC, VOCAB, engine, follow, letters};
use super::*;
use crate::pixels::PixelValues;
use crate::sampling::SamplingParams;

fn image(value: i32) -> PromptPiece {
    PromptPiece::Image(ImageInput {
        hash: [value as u8; 32],
        tokens: 4,
        content: ImageContent::Pixels(Arc::new(Prepared::new(pixels(value), ()))),
    })
}

fn pixels(value: i32) -> PixelValues {
    PixelValues {
        values: vec![value as f32],
        tiles: 1,
        side: 1,
        original: (1, 1),
        grid: None,
    }
}

fn history(prompt: &[PromptPiece]) -> Vec<u64> {
    let positions = prompt.iter().flat_map(|piece| match piece {
        PromptPiece::Tokens(ids) => ids.iter().map(|&id| u64::from(id)).collect::<Vec<_>>(),
        PromptPiece::Image(image) => (0..4)
            .map(|row| 1_000_000 + u64::from(image.hash[0]) + row)
            .collect(),
    });
    positions.collect()
}

fn alone(prompt: &[PromptPiece], max_tokens: usize) -> (String, FinishReason) {
    let mut history = history(prompt);
    let mut text = String::new();
    for _ in 0..max_tokens {
        let token = follow(&history);
        if token == EOS {
            return (text, FinishReason::Stop);
        }
        history.push(token.into());
        text.push(char::from(b'0' + token as u8));
    }
    (text, FinishReason::Length)
}

fn submit(
    engine: &EngineHandle,
    prompt: Vec<PromptPiece>,
    max_tokens: usize,
) -> UnboundedReceiver<Event> {
    submit_with(engine, prompt, max_tokens, |_| ())
}

fn submit_with(
    engine: &EngineHandle,
    prompt: Vec<PromptPiece>,
    max_tokens: usize,
    change: impl FnOnce(&mut Request),
) -> UnboundedReceiver<Event> {
    try_submit(engine, prompt, max_tokens, change).unwrap()
}

fn try_submit(
    engine: &EngineHandle,
    prompt: Vec<PromptPiece>,
    max_tokens: usize,
    change: impl FnOnce(&mut Request),
) -> Result<UnboundedReceiver<Event>, Failure> {
    let (events, coming) = unbounded_channel();
    let mut request = Request {
        prompt,
        max_tokens,
        sampling: SamplingParams::greedy(),
        stop: Vec::new(),
        logprobs: None,
        streams: true,
        decode: letters(),
        arrived: clock::now(),
        deadline: None,
        ended: Arc::default(),
        events,
    };
    change(&mut request);
    engine.submit(request)?;
    Ok(coming)
}

fn answer(mut coming: UnboundedReceiver<Event>) -> Result<(String, FinishReason), Failure> {
    let mut text = String::new();
    loop {
        match coming.blocking_recv().ok_or(Failure::Gone)? {
            Event::Started { .. } => {}
            Event::Token(token) => text += &token.text,
            Event::Finished {
                text: rest, reason, ..
            } => return Ok((text + &rest, reason)),
            Event::Failed(failure) => return Err(failure),
        }
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let end = clock::now() + Duration::from_secs(20);
    while !condition() {
        assert!(clock::now() < end, "waited too long");
        std::thread::yield_now();
    }
}

fn at_rest(engine: &EngineHandle) {
    until(|| engine.pulse().stuck_for(clock::now()).is_none() && engine.pulse().running() == 0);
}

#[test]
fn a_reader_that_rests_is_told_when_the_last_event_is_there() {
    let setup = engine(2, 200);
    let ended = Arc::<tokio::sync::Notify>::default();
    let told = Arc::clone(&ended);
    let prompt = vec![PromptPiece::Tokens(vec![5, 6, 7])];
    let mut coming = submit_with(&setup.engine, prompt, 30, |request| request.ended = told);
    futures::executor::block_on(ended.notified());
    let events = std::iter::from_fn(|| coming.try_recv().ok());
    assert!(matches!(events.last(), Some(Event::Finished { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_mix_of_requests_gives_the_lone_answers(
        slots in 1usize..6,
        kv_tokens in 80usize..200,
        requests in prop::collection::vec(
            (0u32..3, 1u32..30, prop::collection::vec(0i32..3, 0..5), 1usize..40), 1..20),
    ) {
        let setup = engine(slots, kv_tokens);
        let asked: Vec<_> = requests.iter().map(|(family, length, images, max_tokens)| {
            let mut prompt = vec![PromptPiece::Tokens((0..*length).map(|i| 5 + (family * 7 + i * 3) % 50).collect())];
            for &value in images {
                prompt.push(image(value));
                prompt.push(PromptPiece::Tokens(vec![6]));
            }
            (prompt.clone(), *max_tokens, submit(&setup.engine, prompt, *max_tokens))
        }).collect();
        for (prompt, max_tokens, coming) in asked {
            prop_assert_eq!(answer(coming).unwrap(), alone(&prompt, max_tokens));
        }
        at_rest(&setup.engine);
    }
}

#[test]
fn a_panic_or_fault_in_one_request_ends_that_request_only() {
    let setup = engine(8, 1000);
    let good = |n: u32| vec![PromptPiece::Tokens(vec![5, 6, 7 + n])];
    let before = submit(&setup.engine, good(0), 30);
    let panics = submit(&setup.engine, vec![PromptPiece::Tokens(vec![5, PANIC])], 30);
    let faults = submit(&setup.engine, vec![PromptPiece::Tokens(vec![5, FAULT])], 30);
    let bad_image = submit(
        &setup.engine,
        // The bad one is not among the first that are encoded.
        vec![PromptPiece::Tokens(vec![5]), image(7), image(8), image(-1)],
        30,
    );
    let after = submit(
        &setup.engine,
        vec![PromptPiece::Tokens(vec![9]), image(1)],
        30,
    );
    assert_eq!(answer(panics), Err(Failure::Model));
    assert_eq!(answer(faults), Err(Failure::Model));
    assert_eq!(answer(bad_image), Err(Failure::Model));
    assert_eq!(answer(before).unwrap(), alone(&good(0), 30));
    assert_eq!(
        answer(after).unwrap(),
        alone(&[PromptPiece::Tokens(vec![9]), image(1)], 30)
    );
    at_rest(&setup.engine);
}

/// Lets nothing end by itself: greedy answers may end early.
fn endless(request: &mut Request) {
    request.sampling.logit_bias = vec![(EOS, -100.0)];
}

fn tokens(range: std::ops::Range<u32>) -> Vec<PromptPiece> {
    vec![PromptPiece::Tokens(range.collect())]
}

#[test]
fn a_caller_that_leaves_during_prefill_decode_or_encoding_frees_its_slot_within_one_step() {
    let with_image = vec![PromptPiece::Tokens(vec![5]), image(1)];
    // Calls of the model before the one during which the caller leaves.
    for (phase, prompt, calls) in [
        ("the first chunk", tokens(5..50), 0),
        ("a later chunk", tokens(5..50), 2),
        ("decode", tokens(5..8), 3),
        ("encoding", with_image, 0),
    ] {
        let setup = engine(1, 1000);
        setup.pace.hold();
        setup.pace.allow(calls);
        let coming = submit_with(&setup.engine, prompt, 500, endless);
        until(|| setup.pace.begun() == calls + 1);
        assert_eq!(setup.engine.pulse().running(), 1, "{phase}");
        drop(coming);
        // The call under way may end.
        setup.pace.allow(1);
        at_rest(&setup.engine);
        assert_eq!(setup.pace.begun(), calls + 1, "{phase}: there was another");
    }
}

#[test]
fn a_caller_that_leaves_while_it_waits_frees_its_place_within_one_step() {
    let setup = engine(1, 1000);
    setup.pace.hold();
    let _first = submit_with(&setup.engine, tokens(5..8), 500, endless);
    until(|| setup.pace.begun() == 1);
    let second = submit(&setup.engine, tokens(20..25), 5);
    setup.pace.allow(1);
    until(|| setup.pace.begun() == 2);
    assert_eq!(setup.engine.pulse().waiting(), 1);
    drop(second);
    setup.pace.allow(1);
    until(|| setup.pace.begun() == 3);
    assert_eq!(setup.engine.pulse().waiting(), 0);
    assert_eq!(setup.engine.pulse().running(), 1);
    setup.pace.let_go();
}

#[test]
fn a_caller_that_leaves_after_it_was_sent_back_to_the_queue_frees_its_place() {
    let setup = engine(2, 24);
    setup.pace.hold();
    let first = submit_with(&setup.engine, tokens(5..14), 12, endless);
    let second = submit_with(&setup.engine, tokens(30..39), 12, endless);
    while setup.metrics.preemptions.get() == 0 {
        let begun = setup.pace.begun();
        setup.pace.allow(1);
        until(|| setup.pace.begun() > begun);
    }
    assert_eq!(setup.engine.pulse().waiting(), 1);
    drop(second);
    setup.pace.let_go();
    assert!(answer(first).is_ok());
    at_rest(&setup.engine);
}

#[test]
fn a_tokenizer_that_panics_on_one_answer_ends_that_request_only() {
    let setup = engine(4, 1000);
    let prompt = tokens(5..9);
    let before = submit(&setup.engine, prompt.clone(), 20);
    let broken = submit_with(&setup.engine, tokens(20..24), 20, |request| {
        request.decode = Arc::new(Decoder::new(VOCAB, |_| panic!("as asked")));
    });
    let after = submit(&setup.engine, tokens(30..34), 20);
    assert_eq!(answer(broken), Err(Failure::Model));
    assert_eq!(answer(before).unwrap(), alone(&prompt, 20));
    assert_eq!(answer(after).unwrap(), alone(&tokens(30..34), 20));
    at_rest(&setup.engine);
}

#[test]
fn a_newcomer_waits_for_the_call_under_way_and_not_for_another_chunk() {
    let setup = engine(2, 1000);
    setup.pace.hold();
    let _long = submit_with(&setup.engine, tokens(5..60), 5, endless);
    until(|| setup.pace.begun() == 1);
    let mut short = submit_with(&setup.engine, tokens(40..43), 1, endless);
    // The chunk under way, and the newcomer's own.
    setup.pace.allow(2);
    let spoken = |event: Event| matches!(event, Event::Token(_));
    until(|| short.try_recv().is_ok_and(spoken));
    setup.pace.let_go();
}

#[test]
fn who_waits_too_long_is_told_so() {
    let setup = engine(1, 100_000);
    setup.pace.hold();
    let _first = submit_with(&setup.engine, tokens(5..6), 10, endless);
    until(|| setup.pace.begun() == 1);
    let late = submit_with(
        &setup.engine,
        vec![PromptPiece::Tokens(vec![6])],
        10,
        |request| {
            request.deadline = Some(clock::now());
        },
    );
    setup.pace.let_go();
    assert!(matches!(answer(late), Err(Failure::Expired(_))));
}

#[test]
fn an_abort_ends_everything_with_an_error() {
    let setup = engine(1, 100_000);
    setup.pace.hold();
    let first = submit(&setup.engine, vec![PromptPiece::Tokens(vec![5])], 40);
    let second = submit(&setup.engine, vec![PromptPiece::Tokens(vec![6])], 40);
    setup.engine.abort();
    setup.pace.let_go();
    assert_eq!(answer(second), Err(Failure::Stopping));
    assert_eq!(answer(first), Err(Failure::Stopping));
    at_rest(&setup.engine);
    let later = try_submit(&setup.engine, tokens(5..6), 1, |_| ());
    assert_eq!(later.err(), Some(Failure::Stopping));
}

#[test]
fn a_stuck_step_shows() {
    let setup = engine(1, 1000);
    setup.pace.hold();
    let held = submit(&setup.engine, tokens(5..6), 2);
    until(|| {
        setup
            .engine
            .pulse()
            .stuck_for(clock::now())
            .is_some_and(|stuck| stuck > Duration::from_millis(20))
    });
    setup.pace.let_go();
    answer(held).unwrap();
}

#[test]
fn a_request_at_fault_may_be_repeated_and_a_broken_model_ends_the_engine() {
    let setup = engine(1, 1000);
    let fails = |prompt| {
        assert_eq!(
            answer(submit(&setup.engine, prompt, 2)),
            Err(Failure::Model)
        );
    };
    for _ in 0..10 {
        fails(tokens(FAULT..FAULT + 1));
    }
    let prompt = tokens(5..9);
    let whole = answer(submit(&setup.engine, prompt.clone(), 20)).unwrap();
    assert_eq!(whole, alone(&prompt, 20));
    setup.pace.break_down();
    for _ in 0..3 {
        fails(tokens(5..9));
    }
    until(|| setup.engine.pulse().has_ended());
}

#[test]
fn an_answer_that_does_not_stream_goes_out_in_one_piece_at_its_end() {
    let setup = engine(1, 1000);
    setup.pace.hold();
    let mut coming = submit_with(&setup.engine, tokens(5..8), 3, |request| {
        endless(request);
        request.streams = false;
    });
    setup.pace.allow(2);
    until(|| setup.pace.begun() == 3);
    assert!(matches!(coming.try_recv(), Ok(Event::Started { .. })));
    assert!(coming.try_recv().is_err(), "there is more before the end");
    setup.pace.let_go();
    assert_eq!(
        answer(coming).unwrap(),
        (alone(&tokens(5..8), 3).0, FinishReason::Length)
    );
}

#[test]
fn a_stop_text_ends_the_answer_and_is_no_part_of_it() {
    let setup = engine(2, 1000);
    let prompt = vec![PromptPiece::Tokens(vec![5, 6])];
    let (whole, _) = alone(&prompt, 20);
    let stop = whole[3..5].to_owned();
    let expected = whole.split(&stop).next().unwrap().to_owned();
    let coming = submit_with(&setup.engine, prompt, 20, |request| {
        request.stop = vec![stop];
    });
    assert_eq!(answer(coming).unwrap(), (expected, FinishReason::Stop));
}

#[test]
fn the_second_request_with_the_same_beginning_computes_less() {
    let setup = engine(4, 1000);
    let prompt = vec![PromptPiece::Tokens((5..40).collect()), image(1)];
    let first = answer(submit(&setup.engine, prompt.clone(), 5)).unwrap();
    assert_eq!(setup.metrics.cached_tokens.get(), 0);
    let second = answer(submit(&setup.engine, prompt, 5)).unwrap();
    assert_eq!(first, second);
    assert_eq!(setup.metrics.cached_tokens.get(), 38);
    assert_eq!(setup.metrics.images.get(), 1);
}
