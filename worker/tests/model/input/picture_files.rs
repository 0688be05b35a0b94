//! Files of every format, colour type and rotation decode to Pillow's pixels;
//! damaged and outsized ones end in an error that names the image and the limit.

use std::fs;

use llava_worker::image::{DecodeError, Limits, decode, read_header};
use proptest::prelude::*;

use crate::fixture;

/// How far a level may be from Pillow's: the lossy formats' decoders round their transforms differently.
fn tolerance(name: &str) -> u8 {
    match name.rsplit('.').next() {
        Some("jpg") => 1,
        _ if name == "lossy.webp" => 1,
        _ => 0,
    }
}

#[test]
fn every_colour_type_and_rotation_decodes_as_pillow_does() {
    let mut seen = 0;
    for entry in fs::read_dir(fixture("images/files")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".rgb") {
            continue;
        }
        seen += 1;
        let bytes = fs::read(&path).unwrap();
        let wanted = fs::read(path.with_file_name(format!("{name}.rgb"))).unwrap();
        let picture =
            decode(&name, &bytes, &Limits::default()).unwrap_or_else(|error| panic!("{error}"));
        let size = picture.size();
        assert_eq!(
            read_header(&name, &bytes, &Limits::default()).unwrap().size,
            size,
            "{name}"
        );
        assert_eq!(
            [size.width.to_le_bytes(), size.height.to_le_bytes()].concat(),
            wanted[..8],
            "{name}"
        );
        let furthest = picture
            .rgb()
            .iter()
            .zip(&wanted[8..])
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(
            furthest <= Some(tolerance(&name)),
            "{name}: off by {furthest:?}"
        );
    }
    assert!(seen >= 30, "{seen}");
}

fn file(name: &str) -> Vec<u8> {
    fs::read(fixture("images/files").join(name)).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    decode("image 2", bytes, &Limits::default())
        .unwrap_err()
        .to_string()
}

/// A chunk of a PNG, with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut sum = crc32fast::Hasher::new();
    sum.update(kind);
    sum.update(data);
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], kind, data, &sum.finalize().to_be_bytes()].concat()
}

/// A PNG of 8-bit grey with the given chunks between header and end.
fn png(width: u32, height: u32, chunks: &[u8]) -> Vec<u8> {
    let head = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 0, 0, 0, 0],
    ]
    .concat();
    let parts = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &head),
        chunks.to_vec(),
        chunk(b"IEND", &[]),
    ];
    parts.concat()
}

fn deflated(zeros: usize) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), zeros as u64),
        &mut encoder,
    )
    .unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_outsized_header_is_refused_with_the_limit_before_decoding() {
    assert_eq!(
        refusal(&png(60_000, 60_000, &chunk(b"IDAT", &deflated(1)))),
        "image 2: 60000x60000 pixels exceed the limit of 16384 pixels on a side",
    );
    assert_eq!(
        refusal(&png(16_000, 16_000, &chunk(b"IDAT", &deflated(1)))),
        "image 2: 16000x16000 = 256000000 pixels exceed the limit of 40000000 pixels",
    );
    let mut gif = file("rgb.gif");
    gif[6..10].fill(0xff);
    assert!(refusal(&gif).contains("65535x65535"), "{}", refusal(&gif));
    let small = Limits {
        bytes: 10,
        ..Limits::default()
    };
    let error = decode("image 2", &file("rgb.png"), &small).unwrap_err();
    assert!(
        error.to_string().ends_with("exceed the limit of 10 bytes"),
        "{error}"
    );
}

#[test]
fn a_bomb_in_a_chunk_does_not_go_off() {
    let bomb = deflated(64 << 20);
    assert!(bomb.len() < 1 << 20);
    let limits = Limits {
        memory: 8 << 20,
        ..Limits::default()
    };
    let profile = [&b"x\0\0"[..], &bomb].concat();
    let pixels = chunk(b"IDAT", &deflated(6));
    for kind in [b"iCCP", b"zTXt"] {
        // The picture is sound: a chunk that nobody needs may be skipped, never inflated whole.
        let bytes = png(2, 2, &[chunk(kind, &profile), pixels.clone()].concat());
        let picture = decode("image 2", &bytes, &limits).unwrap();
        assert_eq!(picture.rgb(), [0; 12]);
    }
    // More pixel data than the header promises is left unread.
    let overlong = png(2, 2, &chunk(b"IDAT", &bomb));
    let picture = decode("image 2", &overlong, &limits).unwrap();
    assert_eq!(picture.rgb(), [0; 12]);
}

#[test]
fn a_file_cut_short_is_damaged_whatever_its_format() {
    for name in [
        "rgb.png",
        "rgb16.png",
        "jpeg_420.jpg",
        "progressive.jpg",
        "rgb.webp",
        "lossy.webp",
        "rgb.gif",
    ] {
        let bytes = file(name);
        for keep in [bytes.len() / 2, bytes.len() * 9 / 10] {
            let error = decode(name, &bytes[..keep], &Limits::default()).unwrap_err();
            assert!(
                matches!(error, DecodeError::Damaged { .. }),
                "{name} cut to {keep}: {error}"
            );
        }
    }
}

#[test]
fn other_formats_are_refused_by_name_alone() {
    for bytes in [
        &b""[..],
        b"BM",
        b"II*\0",
        b"<svg/>",
        b"\x89PNG",
        b"RIFF\0\0\0\0WAVE",
    ] {
        assert_eq!(
            refusal(bytes),
            "image 2: the format is not PNG, JPEG, WebP or GIF"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_change_to_a_file_makes_the_decoder_panic(
        which in 0usize..8,
        changes in prop::collection::vec((0usize..400, any::<u8>()), 1..6),
        keep in 0usize..4000,
    ) {
        let names = ["rgb.png", "palette_clear.png", "gray16.png", "jpeg_420.jpg", "progressive.jpg", "rgba.webp", "lossy.webp", "animated.gif"];
        let mut bytes = file(names[which]);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(keep.max(12));
        // Small limits keep a lucky mutation of the sides cheap.
        let limits = Limits { pixels: 1 << 20, memory: 8 << 20, ..Limits::default() };
        if let Ok(picture) = decode("image 2", &bytes, &limits) {
            prop_assert_eq!(picture.rgb().len() as u64, picture.size().pixels() * 3);
        }
    }
}
