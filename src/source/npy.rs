//! The header of NumPy's `.npy` files, format versions 1 to 3.
//!
//! Magic word, version, length of the header, then a Python dict with the keys `descr` (the number format),
//! `fortran_order` and `shape`, padded with spaces. The numbers follow directly, row-major unless
//! `fortran_order` says otherwise.

/// What a file says about its array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NpyHeader {
    /// NumPy's word for the number format, `<f4`.
    pub(super) descr: String,
    /// Whether the first index varies fastest.
    pub(super) fortran_order: bool,
    /// Sizes of the dimensions.
    pub(super) shape: Vec<usize>,
    /// Where the numbers begin.
    pub(super) data_start: usize,
}

/// Reads the header at the start of a file's bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<NpyHeader, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it does not start with NumPy's magic word")?;
    let [major, _minor, rest @ ..] = rest else { return Err("it ends within its header".to_owned()) };
    let (length, text_start) = match (major, rest) {
        (1, [a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        (2 | 3, [a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        (1..=3, _) => return Err("it ends within its header".to_owned()),
        (version, _) => return Err(format!("its format version is {version}, known are 1 to 3")),
    };
    let data_start = text_start + length;
    let text = bytes.get(text_start..data_start).ok_or("it ends within its header")?;
    let text = std::str::from_utf8(text).map_err(|error| format!("its header is not text: {error}"))?;
    let mut dict = Literal { rest: text.trim() };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    dict.expect('{')?;
    while !dict.skip('}') {
        let key = dict.string()?;
        dict.expect(':')?;
        match key {
            "descr" => descr = Some(dict.string()?.to_owned()),
            "fortran_order" => fortran_order = Some(dict.boolean()?),
            "shape" => shape = Some(dict.tuple()?),
            other => return Err(format!("its header has the unknown key '{other}'")),
        }
        if !dict.skip(',') {
            dict.expect('}')?;
            break;
        }
    }
    if !dict.rest.is_empty() {
        return Err(format!("its header goes on with `{}` after the dict", dict.rest));
    }
    match (descr, fortran_order, shape) {
        (Some(descr), Some(fortran_order), Some(shape)) => {
            Ok(NpyHeader { descr, fortran_order, shape, data_start })
        }
        _ => Err("its header lacks descr, fortran_order or shape".to_owned()),
    }
}

/// The part of a Python literal that is yet to be read.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    /// Takes a character if it comes next.
    fn skip(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.skip(wanted) { Ok(()) } else { Err(self.unexpected(&format!("`{wanted}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("its header has `{found}` where {wanted} should be")
    }

    /// A string without escapes.
    fn string(&mut self) -> Result<&'a str, String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let inside = quote.and_then(|quote| self.rest[1..].split_once(quote));
        let Some((text, rest)) = inside.filter(|(text, _)| !text.contains('\\')) else {
            return Err(self.unexpected("a string"));
        };
        self.rest = rest.trim_start();
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest.trim_start();
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    /// `(3, 4)`, `(3,)` or `()`.
    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.skip(')') {
            let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = self.rest.split_at(digits);
            let Ok(size) = number.parse() else { return Err(self.unexpected("a size")) };
            sizes.push(size);
            self.rest = rest.trim_start();
            if !self.skip(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(version: u8, text: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((text.len() as u16).to_le_bytes()),
            _ => bytes.extend((text.len() as u32).to_le_bytes()),
        }
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        for (version, data_start) in [(1, 10), (2, 12), (3, 12)] {
            let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }     \n";
            let header = parse(&file(version, text)).unwrap();
            assert_eq!(header.descr, "<f4");
            assert_eq!((header.fortran_order, header.shape), (false, vec![3, 4]));
            assert_eq!(header.data_start, data_start + text.len());
        }
        let shape = |tuple: &str| {
            let text = format!("{{'shape': {tuple}, 'fortran_order': True, \"descr\": '<f8'}}");
            parse(&file(1, &text)).map(|header| header.shape)
        };
        assert_eq!(shape("()"), Ok(vec![]));
        assert_eq!(shape("(7,)"), Ok(vec![7]));
        assert_eq!(shape("( 2 , 3,4 )"), Ok(vec![2, 3, 4]));
        for bad in ["(,)", "(-1,)", "(1 2)", "3", "(99999999999999999999,)", "(1"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_header_is_explained() {
        let error = |bytes: &[u8]| parse(bytes).unwrap_err();
        assert!(error(b"PK\x03\x04").contains("magic word"));
        assert!(error(b"\x93NUMPY\x01").contains("ends within"));
        assert!(error(b"\x93NUMPY\x01\x00\xff\xff{}").contains("ends within"));
        assert!(error(&file(9, "{}")).contains("version is 9"));
        assert!(error(&file(1, "{}")).contains("lacks"));
        assert!(error(&file(1, "{'descr': [('a', '<f4')], }")).contains("a string"));
        assert!(error(&file(1, "{'descr': '<f4', 'other': 1}")).contains("'other'"));
        assert!(error(&file(1, "{'descr': '<f4'} x")).contains("goes on"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_makes_it_panic(version in 0_u8..5, text in "[{}()',:a-z0-9 é<]{0,60}", cut in 0_usize..80) {
            let mut bytes = file(version, &text);
            bytes.truncate(cut);
            prop_assert!(parse(&bytes).map_or(true, |header| header.data_start <= bytes.len()));
        }
    }
}
