package faulty

import "testing"

func TestParse(t *testing.T) {
	for commands, want := range map[string]int{
		"":                    0,
		" ; \n":               0,
		"hang C_Sign,C_Login": 2,
		"crash C_Sign 1":      1,
		"delay 700ms C_Sign":  1,
		"corrupt; duplicate":  2,
		"sessions 16 stated":  1,
		"return CKR_DEVICE_ERROR C_Sign 3\nhang C_Login": 2,
	} {
		rules, err := parse(commands)
		if err != nil || len(rules) != want {
			t.Errorf("%q: %d rules, %v; want %d", commands, len(rules), err, want)
		}
	}
	for _, commands := range []string{
		"explode", "hang", "hang C_Nothing", "hang C_Sign x", "hang C_Sign 1 2", "return C_Sign", "return", "return CKR_NOTHING C_Sign",
		"delay C_Sign", "delay 1us C_Sign", "sessions", "sessions x", "sessions 1 2", "corrupt x",
		"hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;" +
			"hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign;hang C_Sign",
	} {
		if rules, err := parse(commands); err == nil {
			t.Errorf("%q: %+v", commands, rules)
		}
	}
}
