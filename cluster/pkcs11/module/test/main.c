/* The test program of the module: moduletest MODULE PIN MODE. It says "ok MODE" when
 * all holds, and ends with 1 at the first thing that does not. */
#include "load.h"
#include "test.h"

CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

static const struct {
	const char *name;
	void (*run)(struct setting *);
} modes[] = {
	{"general", mode_general}, {"keys", mode_keys},       {"own", mode_own},
	{"threads", mode_threads}, {"fork", mode_fork},       {"restart", mode_restart},
	{"wait", mode_wait},       {"hostile", mode_hostile}, {"encodings", mode_encodings},
	{"stopped", mode_stopped}, {"address", mode_address}, {"pairs", mode_pairs},
};

void want_at(const char *file, int line, const char *call, CK_RV expected, CK_RV got)
{
	if (got == expected)
		return;
	fprintf(stderr, "%s:%d: %s\n\tgave 0x%lx, want 0x%lx\n", file, line, call, got, expected);
	exit(1);
}

void is_at(const char *file, int line, const char *condition, int holds)
{
	if (holds)
		return;
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
	exit(1);
}

CK_SESSION_HANDLE open_session(const struct setting *s)
{
	CK_SESSION_HANDLE h = 0;
	ok(s->f->C_OpenSession(s->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &h));
	return h;
}

void log_in(struct setting *s)
{
	s->slot = first_slot(s->f);
	s->session = open_session(s);
	ok(s->f->C_Login(s->session, CKU_USER, (CK_BYTE *)s->pin, strlen(s->pin)));
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: moduletest MODULE PIN MODE\n");
		return 2;
	}
	struct setting s = {.module = argv[1], .pin = argv[2], .f = load(argv[1])};
	for (size_t i = 0; i < COUNT(modes); i++) {
		if (strcmp(modes[i].name, argv[3]) != 0)
			continue;
		modes[i].run(&s);
		printf("ok %s\n", argv[3]);
		return 0;
	}
	fprintf(stderr, "no mode %s\n", argv[3]);
	return 2;
}
