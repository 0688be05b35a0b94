//! What a JPEG's markers say before it is decoded: whether it is whole, and what its decoder will hold.

/// A marker and what it carries.
struct Segment<'a> {
    marker: u8,
    /// Behind the length.
    data: &'a [u8],
    /// Where the next one begins, or the scan's data.
    end: usize,
}

const FIRST_SCAN: u8 = 0xda;

/// The segments up to the first scan's.
fn segments(file: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            let &[0xff, marker] = file.get(at..at + 2)? else {
                return None;
            };
            match marker {
                // Fill before a marker.
                0xff => at += 1,
                0x01 | 0xd0..=0xd7 => at += 2,
                _ => {
                    let length = file.get(at + 2..at + 4)?;
                    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?)).max(2);
                    let end = at + 2 + length;
                    let data = file.get(at + 4..end)?;
                    at = end;
                    return Some(Segment { marker, data, end });
                }
            }
        }
    })
}

/// The lenient decoder fills what is missing with grey. A whole file has its
/// end-of-image marker after the first scan, and entropy-coded data cannot hold one.
pub(super) fn is_whole(file: &[u8]) -> bool {
    let scan = segments(file).find(|segment| segment.marker == FIRST_SCAN);
    scan.is_some_and(|scan| file[scan.end..].windows(2).any(|pair| pair == [0xff, 0xd9]))
}

/// Bytes of the coefficients that the decoder holds: two for each sample of whole blocks where the file is
/// progressive, or where its first scan has not all components; none else.
pub(super) fn coefficients(file: &[u8]) -> u64 {
    let mut all = 0;
    let mut components = 0;
    for Segment { marker, data, .. } in segments(file) {
        match (marker, data) {
            (0xc0..=0xc2, &[_, h0, h1, w0, w1, count, ref rest @ ..]) => {
                let (width, height) = (u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]));
                let factors = || {
                    let each = rest.chunks_exact(3).take(usize::from(count));
                    each.map(|component| {
                        (u64::from(component[1] >> 4), u64::from(component[1] & 15))
                    })
                };
                let widest = factors()
                    .map(|(across, _)| across)
                    .max()
                    .unwrap_or(1)
                    .max(1);
                let tallest = factors().map(|(_, down)| down).max().unwrap_or(1).max(1);
                let across = u64::from(width).div_ceil(8 * widest);
                let down = u64::from(height).div_ceil(8 * tallest);
                let blocks: u64 = factors().map(|(across, down)| across * down).sum();
                all = across * down * blocks * 64 * 2;
                // A progressive file's scans never make it whole at once.
                components = if marker == 0xc2 { 0 } else { count };
            }
            (FIRST_SCAN, &[in_scan, ..]) => return if in_scan == components { 0 } else { all },
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frame: u8, factors: &[u8], in_scan: u8) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, frame, 0, 8 + 3 * factors.len() as u8, 8];
        bytes.extend([0, 100, 0, 50, factors.len() as u8]);
        bytes.extend(factors.iter().flat_map(|both| [1, *both, 0]));
        bytes.extend([0xff, FIRST_SCAN, 0, 3, in_scan]);
        bytes
    }

    #[test]
    fn only_files_whose_first_scan_is_not_the_last_hold_coefficients() {
        // 50 by 100 in blocks of 8: 7 by 13; in units of 16: 4 by 7, with 6 blocks each.
        assert_eq!(coefficients(&file(0xc2, &[0x11; 3], 3)), 7 * 13 * 3 * 128);
        assert_eq!(
            coefficients(&file(0xc2, &[0x22, 0x11, 0x11], 3)),
            4 * 7 * 6 * 128
        );
        assert_eq!(coefficients(&file(0xc0, &[0x11; 3], 1)), 7 * 13 * 3 * 128);
        assert_eq!(coefficients(&file(0xc0, &[0x11; 3], 3)), 0);
    }

    #[test]
    fn a_file_without_its_end_is_not_whole() {
        let mut bytes = file(0xc0, &[0x11], 1);
        assert!(!is_whole(&bytes));
        bytes.extend([1, 2, 0xff, 0xd9]);
        assert!(is_whole(&bytes));
        assert!(!is_whole(&bytes[..9]));
    }
}
