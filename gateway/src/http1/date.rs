//! The Date field's value, rendered once a second.

const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];

const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

const DAY: u64 = 24 * 60 * 60;

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

/// A cached IMF-fixdate (RFC 9110, 5.6.7), rendered again when its second is over.
#[derive(Debug, Clone)]
pub struct HttpDate {
    second: u64,
    text: [u8; 29],
}

impl Default for HttpDate {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpDate {
    /// A cache of the first second of 1970.
    pub fn new() -> Self {
        Self {
            second: 0,
            text: render(0),
        }
    }

    /// The date of a time in seconds since 1970; times after the year 9999 give its last second.
    #[inline]
    pub fn at(&mut self, unix_seconds: u64) -> &[u8; 29] {
        if self.second != unix_seconds {
            self.second = unix_seconds;
            self.text = render(unix_seconds);
        }
        &self.text
    }
}

fn render(unix_seconds: u64) -> [u8; 29] {
    let seconds = unix_seconds.min(LAST);
    let (days, of_day) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    two(&mut text[5..7], day);
    text[8..11].copy_from_slice(MONTHS[(month - 1) as usize]);
    two(&mut text[12..14], year / 100);
    two(&mut text[14..16], year % 100);
    two(&mut text[17..19], of_day / 3600);
    two(&mut text[20..22], of_day / 60 % 60);
    two(&mut text[23..25], of_day % 60);
    text
}

/// Writes a number below 100 in two digits.
fn two(text: &mut [u8], number: u64) {
    text[0] = b'0' + (number / 10 % 10) as u8;
    text[1] = b'0' + (number % 10) as u8;
}

/// Year, month and day of a day since 1970: Howard Hinnant's `civil_from_days`, in which years begin
/// in March, so that a leap day is a year's last one.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        let mut date = HttpDate::new();
        for (second, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            // RFC 9110, 5.6.7.
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_709_251_200, "Fri, 01 Mar 2024 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (LAST, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(date.at(second)).unwrap(), expected);
            assert_eq!(std::str::from_utf8(date.at(second)).unwrap(), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let lengths = |year: u64| {
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            [
                31,
                if leap { 29 } else { 28 },
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ]
        };
        let mut days = 0;
        for year in 1970..2500 {
            for (month, length) in (1..).zip(lengths(year)) {
                for day in 1..=length {
                    assert_eq!(civil(days), (year, month, day));
                    days += 1;
                }
            }
        }
    }
}
