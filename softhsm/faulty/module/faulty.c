/*
 * A PKCS#11 module for tests: it passes every call on to a real module and misbehaves as a control file says.
 *
 * REAL_MODULE, an absolute path, is given to the compiler. The control file is beside this module, with ".control"
 * after its name. It is mapped, so that a call costs a few reads of memory more, and counts outlive a process that was
 * made to crash. Its layout is that of struct control, which control.go writes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* What is needed of PKCS#11 v2.40 base specification, sections 3 and 5. */
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_FLAGS;
typedef unsigned char CK_BYTE, CK_BBOOL;
enum { CKR_OK = 0x0, CKR_GENERAL_ERROR = 0x5, CKR_SESSION_COUNT = 0xb1 };

/* CK_FUNCTION_LIST: the functions in the order of section 5. */
enum { FUNCTIONS = 68 };
struct function_list {
	CK_BYTE version[2];
	void *function[FUNCTIONS];
};

struct token_info {
	CK_BYTE label[32], manufacturer[32], model[16], serial[16];
	CK_FLAGS flags;
	CK_ULONG max_sessions, sessions, max_rw_sessions, rw_sessions;
	/* more that is left alone */
};

enum { C_FINALIZE = 1, C_GETTOKENINFO = 6, C_OPENSESSION = 12, C_CLOSESESSION = 13, C_CLOSEALLSESSIONS = 14, C_SIGN = 43 };

/* Actions of a rule. */
enum { HANG = 1, CRASH, RETURN, DELAY, CORRUPT, LIMIT, LIMIT_STATED, DUPLICATE };

enum { RULES = 16 };
struct rule {
	uint32_t function; /* index in CK_FUNCTION_LIST */
	uint32_t action;
	uint64_t value;    /* return value, milliseconds or sessions */
	int64_t remaining; /* calls; negative: all */
};

struct control {
	uint32_t generation; /* grows with each change */
	uint32_t rules;
	struct rule rule[RULES];
	uint64_t calls[FUNCTIONS];
};

static struct function_list *real, ours;
static struct control *control;
static int writable; /* whether counts can be kept in the control file */
static int64_t used[RULES];
static uint32_t used_generation;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long open_sessions;

static void sleep_ms(uint64_t ms) {
	struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
	while (nanosleep(&left, &left) != 0 && errno == EINTR) {
	}
}

static uint32_t generation(void) { return __atomic_load_n(&control->generation, __ATOMIC_ACQUIRE); }

/* take spends one call of a rule, and tells whether there was one left. */
static int take(int i) {
	int left;
	pthread_mutex_lock(&mutex);
	if (used_generation != generation()) {
		used_generation = generation();
		memset(used, 0, sizeof used);
	}
	if (control->rule[i].remaining < 0)
		left = 1;
	else if (writable)
		left = __atomic_fetch_sub(&control->rule[i].remaining, 1, __ATOMIC_ACQ_REL) > 0;
	else
		left = used[i]++ < control->rule[i].remaining;
	if (writable && !left)
		__atomic_store_n(&control->rule[i].remaining, 0, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&mutex);
	return left;
}

/* rule_for returns the first rule with this action for a function, after spending one of its calls. */
static struct rule *rule_for(int function, uint32_t action) {
	uint32_t rules = __atomic_load_n(&control->rules, __ATOMIC_ACQUIRE);
	for (uint32_t i = 0; i < rules && i < RULES; i++) {
		struct rule *r = &control->rule[i];
		if ((int)r->function == function && r->action == action && take((int)i))
			return r;
	}
	return NULL;
}

/* misbehave does what the rules say of a call, and returns what the call must return, or CKR_OK to let it pass. */
static CK_RV misbehave(int function) {
	struct rule *r;
	if (rule_for(function, CRASH))
		abort();
	if (rule_for(function, HANG))
		for (uint32_t since = generation(); since == generation();)
			sleep_ms(5);
	if ((r = rule_for(function, DELAY)))
		sleep_ms(r->value);
	if ((r = rule_for(function, RETURN)))
		return r->value;
	return CKR_OK;
}

static void count(int function) {
	if (writable)
		__atomic_fetch_add(&control->calls[function], 1, __ATOMIC_RELAXED);
}

/* The functions that are passed on after misbehave. Each argument is as wide as a CK_ULONG or a pointer, or promoted
 * to an int, so that one signature of unsigned longs fits all of them in the calling conventions of 64-bit systems. */
typedef CK_RV (*function)(CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG);

#define PASS(index)                                                                                                    \
	static CK_RV pass_##index(CK_ULONG a, CK_ULONG b, CK_ULONG c, CK_ULONG d, CK_ULONG e, CK_ULONG f, CK_ULONG g,  \
				  CK_ULONG h) {                                                                        \
		count(index);                                                                                          \
		CK_RV rv = misbehave(index);                                                                           \
		return rv != CKR_OK ? rv : ((function)real->function[index])(a, b, c, d, e, f, g, h);                  \
	}

PASS(4)
PASS(5)
PASS(7)
PASS(8)
PASS(11)
PASS(15)
PASS(18)
PASS(19)
PASS(20)
PASS(22)
PASS(24)
PASS(26)
PASS(27)
PASS(28)
PASS(42)
PASS(59)
PASS(64)

static CK_RV finalize(void *reserved) {
	count(C_FINALIZE);
	__atomic_store_n(&open_sessions, 0, __ATOMIC_RELEASE);
	return ((CK_RV(*)(void *))real->function[C_FINALIZE])(reserved);
}

static CK_RV get_token_info(CK_SLOT_ID slot, struct token_info *info) {
	count(C_GETTOKENINFO);
	CK_RV rv = misbehave(C_GETTOKENINFO);
	if (rv != CKR_OK)
		return rv;
	rv = ((CK_RV(*)(CK_SLOT_ID, struct token_info *))real->function[C_GETTOKENINFO])(slot, info);
	struct rule *stated = rv == CKR_OK ? rule_for(C_OPENSESSION, LIMIT_STATED) : NULL;
	if (stated)
		info->max_sessions = info->max_rw_sessions = stated->value;
	return rv;
}

typedef CK_RV (*open_function)(CK_SLOT_ID, CK_FLAGS, void *, void *, CK_SESSION_HANDLE *);

/* open_duplicate gives callers that come while another one is inside that one's handle. */
static CK_RV open_duplicate(CK_SLOT_ID slot, CK_FLAGS flags, void *data, void *notify, CK_SESSION_HANDLE *session) {
	static int inside;
	static CK_SESSION_HANDLE first;
	CK_RV rv = CKR_OK;
	if (__atomic_fetch_add(&inside, 1, __ATOMIC_ACQ_REL) == 0) {
		rv = ((open_function)real->function[C_OPENSESSION])(slot, flags, data, notify, session);
		__atomic_store_n(&first, *session, __ATOMIC_RELEASE);
		sleep_ms(20);
	} else {
		sleep_ms(10);
		*session = __atomic_load_n(&first, __ATOMIC_ACQUIRE);
	}
	__atomic_fetch_sub(&inside, 1, __ATOMIC_ACQ_REL);
	return rv;
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *data, void *notify, CK_SESSION_HANDLE *session) {
	count(C_OPENSESSION);
	CK_RV rv = misbehave(C_OPENSESSION);
	if (rv != CKR_OK)
		return rv;
	struct rule *limit = rule_for(C_OPENSESSION, LIMIT);
	if (!limit)
		limit = rule_for(C_OPENSESSION, LIMIT_STATED);
	if (__atomic_add_fetch(&open_sessions, 1, __ATOMIC_ACQ_REL) > (long)(limit ? limit->value : INT32_MAX))
		rv = CKR_SESSION_COUNT;
	else if (rule_for(C_OPENSESSION, DUPLICATE))
		rv = open_duplicate(slot, flags, data, notify, session);
	else
		rv = ((open_function)real->function[C_OPENSESSION])(slot, flags, data, notify, session);
	if (rv != CKR_OK)
		__atomic_sub_fetch(&open_sessions, 1, __ATOMIC_ACQ_REL);
	return rv;
}

static CK_RV close_session(CK_SESSION_HANDLE session) {
	count(C_CLOSESESSION);
	CK_RV rv = ((CK_RV(*)(CK_SESSION_HANDLE))real->function[C_CLOSESESSION])(session);
	if (rv == CKR_OK)
		__atomic_sub_fetch(&open_sessions, 1, __ATOMIC_ACQ_REL);
	return rv;
}

static CK_RV close_all_sessions(CK_SLOT_ID slot) {
	count(C_CLOSEALLSESSIONS);
	__atomic_store_n(&open_sessions, 0, __ATOMIC_RELEASE);
	return ((CK_RV(*)(CK_SLOT_ID))real->function[C_CLOSEALLSESSIONS])(slot);
}

/* sign lets a length query (section 5.2) pass and counts and spoils signatures. One that is refused is made and thrown
 * away, since a C_Sign that fails ends the operation (section 5.11, C_Sign). */
static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature, CK_ULONG *room) {
	CK_RV (*next)(CK_SESSION_HANDLE, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *) = real->function[C_SIGN];
	if (!signature)
		return next(session, data, length, signature, room);
	count(C_SIGN);
	CK_RV refused = misbehave(C_SIGN);
	CK_RV rv = next(session, data, length, signature, room);
	if (refused != CKR_OK) {
		memset(signature, 0, *room);
		return refused;
	}
	if (rv == CKR_OK && *room > 0 && rule_for(C_SIGN, CORRUPT))
		signature[*room / 2] ^= 0x10;
	return rv;
}

static int map_control(void) {
	static char path[4096];
	Dl_info self;
	if (!dladdr((void *)map_control, &self) ||
	    snprintf(path, sizeof path, "%s.control", self.dli_fname) >= (int)sizeof path)
		return 0;
	int file = open(path, O_RDWR | O_CLOEXEC);
	writable = file >= 0;
	if (!writable)
		file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return 0;
	void *mapped = mmap(NULL, sizeof *control, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (mapped == MAP_FAILED)
		return 0;
	control = mapped;
	return 1;
}

static struct function_list *load_real(void) {
	void *library = dlopen(REAL_MODULE, RTLD_NOW | RTLD_LOCAL);
	CK_RV (*get)(struct function_list **) = library ? (CK_RV(*)(struct function_list **))dlsym(library, "C_GetFunctionList") : NULL;
	struct function_list *list = NULL;
	return get && get(&list) == CKR_OK ? list : NULL;
}

static CK_RV load(void) {
	if (real)
		return CKR_OK;
	struct function_list *list = load_real();
	if (!list || !map_control())
		return CKR_GENERAL_ERROR;
	ours = *list;
#define REPLACE(index) ours.function[index] = (void *)pass_##index;
	REPLACE(4) REPLACE(5) REPLACE(7) REPLACE(8) REPLACE(11) REPLACE(15) REPLACE(18) REPLACE(19) REPLACE(20) REPLACE(22)
	REPLACE(24) REPLACE(26) REPLACE(27) REPLACE(28) REPLACE(42) REPLACE(59) REPLACE(64)
	ours.function[C_FINALIZE] = (void *)finalize;
	ours.function[C_GETTOKENINFO] = (void *)get_token_info;
	ours.function[C_OPENSESSION] = (void *)open_session;
	ours.function[C_CLOSESESSION] = (void *)close_session;
	ours.function[C_CLOSEALLSESSIONS] = (void *)close_all_sessions;
	ours.function[C_SIGN] = (void *)sign;
	real = list;
	return CKR_OK;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(struct function_list **list) {
	pthread_mutex_lock(&mutex);
	CK_RV rv = load();
	pthread_mutex_unlock(&mutex);
	if (rv == CKR_OK)
		*list = &ours;
	return rv;
}
